"""The frozen model as a writer of questions. Main entry: `QuestionWriter`.

    Sentence: <sentence>\nQuestion: <question>\nAnswer: <answer>\n\n      (each example)
    Sentence: <sentence>\nQuestion: <first words>                         (the model continues to the end of the line)

A small model writes better questions about one sentence than about a whole passage. The answer is written from the
sentence, too. The passage and the ordinary prompt of an evaluation come later, so they are an independent test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from latentwire.data.examples import Dataset, Example, draw_examples
from latentwire.data.passages import sentences_of
from latentwire.data.prompts import PromptWriter
from latentwire.harness.errors import UserError
from latentwire.harness.random import generator_for
from latentwire.lm.batching import plan_batches
from latentwire.lm.decoding import Decoder, Generated, Prefix, encode_prefix
from latentwire.lm.models import LanguageModel
from latentwire.questions.settings import QuestionSettings

FORMAT = 1  # version of the prompts and rules, part of the identity; raise it when one of them changes
R = TypeVar("R")


@dataclass(frozen=True)
class SentenceExample:
    """A sentence, a question about it and its answer."""

    sentence: str
    question: str
    answer: str


@dataclass(frozen=True)
class ShownTexts:
    """What the model is shown: sentences with questions before it writes, and shots before it answers."""

    sentences: list[SentenceExample]
    shots: list[list[Example]]

    def texts(self) -> list[str]:
        """Return the shown sentences and the passages of the shots."""
        return [*(each.sentence for each in self.sentences), *(shot[0].context for shot in self.shots)]


def draw_shown(data: Dataset, settings: QuestionSettings) -> ShownTexts:
    """Draw what the model is shown from the first part of a data set.

    An evaluation with the same seed has the same shots. The sentences are from other passages.

    Raises:
        UserError: The data have too few passages, or no question that begins in one of the chosen ways.
    """
    shots, _ = draw_examples(data, settings.shots, settings.questions_per_shot, settings.seed)
    used = {shot[0].context for shot in shots}
    generator = generator_for(settings.seed, "questions", "sentences")
    order = torch.randperm(len(data.train), generator=generator).tolist()
    chosen: dict[str, list[SentenceExample]] = {beginning: [] for beginning in settings.beginnings}
    for example in (data.train[index] for index in order if data.train[index].context not in used):
        holding = [sentence for sentence in sentences_of(example.context) if example.answers[0] in sentence]
        beginning = next((each for each in chosen if example.question.startswith(f"{each} ")), None)
        if len(holding) == 1 and beginning and len(chosen[beginning]) < settings.examples_per_beginning:
            chosen[beginning].append(SentenceExample(holding[0], example.question, example.answers[0]))
    # In turn, so that no beginning follows itself more often than others.
    longest = max(map(len, chosen.values()))
    sentences = [each[turn] for turn in range(longest) for each in chosen.values() if turn < len(each)]
    if not sentences:
        raise UserError(
            f"beginnings={settings.beginnings}: no question of the data begins like this with its answer in one "
            "sentence; choose other first words, or other data=..."
        )
    return ShownTexts(sentences, shots)


class QuestionWriter:
    """Writes and answers questions with a frozen model; a `latentwire.questions.selection.QuestionModel`.

    Args:
        lm: The frozen model.
        shown: What the model is shown.
        settings: Settings of the task.
    """

    def __init__(self, lm: LanguageModel, shown: ShownTexts, settings: QuestionSettings) -> None:
        self.lm, self.settings, self.prompts = lm, settings, PromptWriter(lm.tokenizer)
        shots, sentences = self.prompts.shots(shown.shots), self._sentence_shots(shown.sentences)
        self.room = lm.context_length - max(len(shots), len(sentences)) - settings.max_new_tokens
        prefixes: list[Prefix] = [encode_prefix(lm, ids) for ids in (sentences, shots)]
        self.writing = Decoder(lm, prefixes[0], settings.max_question_tokens)
        self.answering = Decoder(lm, prefixes[0], settings.max_new_tokens)
        self.asking = Decoder(lm, prefixes[1], settings.max_new_tokens)

    def fits(self, passage: str) -> bool:
        """Return whether a passage with a question and an answer fits into the model's context."""
        longest = max(len(self.prompts.ids(f" {each}")) for each in self.settings.beginnings)
        longest += self.settings.max_question_tokens
        return len(self.prompts.prompt(Example("", passage, "", ())).token_ids) + longest <= self.room

    def write(self, beginnings: Sequence[tuple[str, str]]) -> list[Generated]:
        """Return how questions continue, from sentences and the questions' first words."""
        prompts = [self._about(sentence, beginning) for sentence, beginning in beginnings]
        return self._decode(self.writing, prompts, [sentence for sentence, _ in beginnings])

    def answer_sentences(self, questions: Sequence[tuple[str, str]]) -> list[Generated]:
        """Return answers from sentences alone, from sentences and their questions."""
        end = self.prompts.ids("\nAnswer:")
        prompts = [self._about(sentence, question) + end for sentence, question in questions]
        return self._decode(self.answering, prompts, [sentence for sentence, _ in questions])

    def answer(self, examples: Sequence[Example], passage: bool) -> list[Generated]:
        """Return answers to questions in the ordinary prompt, with or without their passages."""
        prompts = [self.prompts.prompt(example, passage).token_ids.tolist() for example in examples]
        return self._decode(self.asking, prompts, [example.context if passage else "" for example in examples])

    def confidence(self, examples: Sequence[Example]) -> list[float]:
        """Return the geometric mean of the probabilities of an answer's tokens and its end, given the passage."""
        prompts = [self.prompts.prompt(example).token_ids.tolist() for example in examples]
        answers = [
            (self.prompts.ids(f" {example.answers[0]}") + self.prompts.ids("\n")[:1])[: self.settings.max_new_tokens]
            for example in examples
        ]

        def score(batch: list[int], embeds: list[Tensor]) -> list[float]:
            found = self.asking.answer_logps(embeds, [answers[index] for index in batch])
            return [math.exp(math.fsum(logps) / len(logps)) for logps in found]

        return self._in_batches(self.asking, prompts, [example.context for example in examples], score)

    def _sentence_shots(self, examples: Sequence[SentenceExample]) -> Tensor:
        ids = self.prompts.shots([]).tolist()
        for each in examples:
            ids += self._about(each.sentence, each.question)
            ids += self.prompts.ids("\nAnswer:") + self.prompts.ids(f" {each.answer}") + self.prompts.ids("\n\n")
        return torch.tensor(ids, dtype=torch.int64)

    def _about(self, sentence: str, question: str) -> list[int]:
        """Return the token ids of a sentence and a question, or its first words."""
        pieces = ("Sentence:", f" {sentence}", "\nQuestion:", f" {question}")
        return [token for piece in pieces for token in self.prompts.ids(piece)]

    def _decode(self, decoder: Decoder, prompts: list[list[int]], passages: list[str]) -> list[Generated]:
        return self._in_batches(decoder, prompts, passages, lambda _, embeds: decoder.generate(embeds))

    def _in_batches(
        self,
        decoder: Decoder,
        prompts: list[list[int]],
        passages: list[str],
        compute: Callable[[list[int], list[Tensor]], list[R]],
    ) -> list[R]:
        """Return what `compute` gives for each prompt, from the indices and the embeddings of each batch."""
        found: dict[int, R] = {}
        for batch in plan_batches([len(ids) for ids in prompts], passages, decoder.added, self.settings.batch_tokens):
            embeds = [self.lm.embed(torch.tensor(prompts[index])) for index in batch]
            found |= zip(batch, compute(batch, embeds), strict=True)
        return [found[index] for index in range(len(prompts))]
