"""Few-shot completion prompts as token ids, with the source span marked. Main entry: `PromptWriter`.

    Context: <passage>\nQuestion: <question>\nAnswer: <answer>\nQuestion: ...\nAnswer: ...\n\n   (each shot)
    Context: [passage]\nQuestion: [question]\nAnswer:       (the example; [...] is the source span)

The shots are the same tokens for every example, so the examples share their key/value cache. Several questions per
passage show a small model that the answer depends on the question. With one question it tends to copy from the shots.

The source span stands for the output of an encoder. Sources and transforms change only the source span.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from latentwire.data.examples import Example

FORMAT = 2  # version of the prompts, part of every config hash; raise it when a prompt changes


@dataclass(frozen=True)
class FewShotPrompt:
    """The prompt of an example as tokens, without the shots."""

    example: Example
    token_ids: torch.Tensor  # (T,) int64
    source_mask: torch.Tensor  # (T,) bool, true on the source span
    passage_mask: torch.Tensor  # (T,) bool, true on the passage, which begins the source span
    passage: bool = True  # whether the prompt includes the passage
    given: torch.Tensor | None = None  # (T,) token ids that source and transform get instead; None: the prompt's own


@dataclass(frozen=True)
class ShotPiece:
    """Consecutive tokens of the shots: a passage, or what stands between two passages."""

    token_ids: torch.Tensor  # (T,) int64
    passage: str | None = None  # the passage's text, if the tokens are a passage


class PromptWriter:
    """Writes prompts as token ids of one tokenizer.

    The pieces of a prompt are tokenized separately, so the tokens of the source span do not depend on their context.

    Args:
        tokenizer: Tokenizer of the language model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a piece of text, without special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def shots(self, passages: list[list[Example]]) -> torch.Tensor:
        """Return the token ids of the shots, (P,) int64. They begin with BOS if the tokenizer adds it to texts.

        Args:
            passages: Examples of each shot. The examples of one shot share their passage.
        """
        return torch.cat([piece.token_ids for piece in self.shot_pieces(passages)])

    def shot_pieces(self, passages: list[list[Example]]) -> list[ShotPiece]:
        """Return the tokens of the shots in pieces, so that each passage is a piece of its own.

        Arguments are as in `shots`. The pieces between two passages hold the questions and answers.
        """
        beginning = list(self.tokenizer("")["input_ids"])
        between = [i for i in beginning if i == self.tokenizer.bos_token_id][:1]
        pieces: list[ShotPiece] = []
        for examples in passages:
            text = examples[0].context
            before = _piece([*between, *self.ids("Context:")])
            pieces += [before, _piece(self.ids(f" {text}"), text)]
            between = []
            for example in examples:
                between += self.asked(example) + self.ids(f" {example.answers[0]}")
            between += self.ids("\n\n")
        return [*pieces, _piece(between)]

    def asked(self, example: Example) -> list[int]:
        """Return the token ids of a question in a prompt, up to the beginning of the answer."""
        return [*self.ids("\nQuestion:"), *self.ids(f" {example.question}"), *self.ids("\nAnswer:")]

    def prompt(self, example: Example, passage: bool = True) -> FewShotPrompt:
        """Return the prompt of an example, without the shots.

        Args:
            example: Passage and question.
            passage: Whether the prompt includes the passage.
        """
        ids: list[int] = []
        source_mask: list[bool] = []
        passage_mask: list[bool] = []
        for text, is_source, is_passage in (
            ("Context:", False, False),
            *([(f" {example.context}", True, True)] if passage else []),
            ("\nQuestion:", False, False),
            (f" {example.question}", True, False),
            ("\nAnswer:", False, False),
        ):
            tokens = self.ids(text)
            ids += tokens
            source_mask += [is_source] * len(tokens)
            passage_mask += [is_passage] * len(tokens)
        return FewShotPrompt(example, torch.tensor(ids), torch.tensor(source_mask), torch.tensor(passage_mask), passage)

    def spans(self, examples: list[Example], positions: int, questions: bool = True) -> list[torch.Tensor]:
        """Return the token ids of the passages and questions of examples, each distinct text once.

        Args:
            examples: Examples in the order of the spans.
            positions: Largest total number of tokens. The list ends before the first span that exceeds it.
            questions: Whether to include the questions.

        Returns:
            Token ids of each text, (T,) int64.
        """
        pieces = [(example.context, example.question) if questions else (example.context,) for example in examples]
        texts = dict.fromkeys(text for piece in pieces for text in piece)
        spans: list[torch.Tensor] = []
        remaining = positions
        for text in texts:
            ids = self.ids(f" {text}")
            if len(ids) > remaining:
                break
            spans.append(torch.tensor(ids, dtype=torch.int64))
            remaining -= len(ids)
        return spans


def _piece(ids: list[int], passage: str | None = None) -> ShotPiece:
    return ShotPiece(torch.tensor(ids, dtype=torch.int64), passage)
