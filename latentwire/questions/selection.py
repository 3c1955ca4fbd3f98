"""Which of the written questions are kept, and why the others are not. Main entry: `choose_questions()`.

The rules run from the cheapest to the dearest, and a question meets a rule only after it has passed the earlier ones.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from latentwire.data.examples import Example
from latentwire.data.fingerprints import fingerprint
from latentwire.data.passages import sentences_of
from latentwire.lm.decoding import Generated
from latentwire.stats.answers import f1_score, normalize_answer

MIN_WORDS = 4  # a sentence with fewer words gets no question
LONG = 5  # words of this length count as content words, and two words are alike if they share this beginning

# Why a question is not kept, in the order of the rules.
REASONS = (
    "longer than max_question_tokens",
    "not a question",
    "written before about this passage",
    "its words are not in the passage",
    "its answer is not in the passage",
    "contains its answer",
    "answered otherwise with the passage",
    "answered without confidence",
    "answered without the passage",
    "beyond questions_per_passage",
)
TOO_LONG, NO_QUESTION, TWICE, FOREIGN, NO_SPAN, GIVEN, OTHERWISE, UNSURE, KNOWN, BEYOND = REASONS


class QuestionModel(Protocol):
    """What the rules need from the frozen model. Each function returns one entry for each of its arguments."""

    def write(self, beginnings: Sequence[tuple[str, str]]) -> list[Generated]:
        """Return how questions continue, from sentences and the questions' first words."""

    def answer_sentences(self, questions: Sequence[tuple[str, str]]) -> list[Generated]:
        """Return answers from sentences alone, from sentences and their questions."""

    def answer(self, examples: Sequence[Example], passage: bool) -> list[Generated]:
        """Return answers to questions in the ordinary prompt, with or without their passages."""

    def confidence(self, examples: Sequence[Example]) -> list[float]:
        """Return the mean probability of a token of each example's answer, given its passage, in [0, 1]."""


@dataclass(frozen=True)
class SelectionRules:
    """Limits of the rules; the attributes are as in `latentwire.questions.settings.QuestionSettings`."""

    beginnings: tuple[str, ...]
    min_overlap: float
    min_f1: float
    min_confidence: float
    max_f1_without: float
    questions_per_passage: int


@dataclass
class WrittenQuestion:
    """A question that the model has written about a sentence of a passage."""

    passage: int  # index of the passage
    sentence: str
    text: str
    answer: str = ""
    confidence: float = 0.0


@dataclass
class ChosenQuestions:
    """The questions that are kept, with their confidence, and counts of all written ones."""

    kept: list[tuple[Example, float]] = field(default_factory=list)
    written: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # by reason


def choose_questions(passages: Sequence[str], model: QuestionModel, rules: SelectionRules) -> ChosenQuestions:
    """Write questions about passages, and keep those that the model answers from the passage and not without it.

    Args:
        passages: Texts.
        model: Writes and answers questions.
        rules: Limits of the rules.

    Returns:
        The kept questions in the order of the passages, surest first, and counts: each written question is kept or
        dropped for one reason.
    """
    found = ChosenQuestions()
    left = _written(passages, model, rules, found)
    left = _with_answers(left, passages, model, found)
    left = _confirmed(left, passages, model, rules, found)
    for number, text in enumerate(passages):
        own = sorted((each for each in left if each.passage == number), key=lambda each: -each.confidence)
        found.dropped[BEYOND] += len(own[rules.questions_per_passage :])
        for place, question in enumerate(own[: rules.questions_per_passage]):
            found.kept.append((_example(question, text, place), question.confidence))
    found.dropped = +found.dropped
    return found


def _example(question: WrittenQuestion, passage: str, place: int) -> Example:
    return Example(f"{fingerprint(passage)}-{place}", passage, question.text, (question.answer,))


def _written(
    passages: Sequence[str], model: QuestionModel, rules: SelectionRules, found: ChosenQuestions
) -> list[WrittenQuestion]:
    """Return the written questions that are sound as texts."""
    places = [
        (number, sentence, beginning)
        for number, passage in enumerate(passages)
        for sentence in askable_sentences(passage)
        for beginning in rules.beginnings
    ]
    outputs = model.write([(sentence, beginning) for _, sentence, beginning in places]) if places else []
    found.written = len(places)
    left: list[WrittenQuestion] = []
    seen: set[tuple[int, str]] = set()
    for (number, sentence, beginning), output in zip(places, outputs, strict=True):
        text = f"{beginning} {output.text}"
        key = number, normalize_answer(text)
        if output.cut_off:
            found.dropped[TOO_LONG] += 1
        elif not re.search(r"\w.*\?$", output.text):
            found.dropped[NO_QUESTION] += 1
        elif key in seen:
            found.dropped[TWICE] += 1
        elif word_overlap(output.text, passages[number]) < rules.min_overlap:
            found.dropped[FOREIGN] += 1
        else:
            left.append(WrittenQuestion(number, sentence, text))
        seen.add(key)
    return left


def _with_answers(
    questions: list[WrittenQuestion], passages: Sequence[str], model: QuestionModel, found: ChosenQuestions
) -> list[WrittenQuestion]:
    """Return the questions whose answer, written from the sentence alone, is a span of the passage."""
    outputs = model.answer_sentences([(each.sentence, each.text) for each in questions]) if questions else []
    left = []
    for question, output in zip(questions, outputs, strict=True):
        if output.cut_off or not is_span(output.text, passages[question.passage]):
            found.dropped[NO_SPAN] += 1
        elif words_of(output.text) <= words_of(question.text):
            found.dropped[GIVEN] += 1
        else:
            question.answer = output.text
            left.append(question)
    return left


def _confirmed(
    questions: list[WrittenQuestion],
    passages: Sequence[str],
    model: QuestionModel,
    rules: SelectionRules,
    found: ChosenQuestions,
) -> list[WrittenQuestion]:
    """Return the questions that the model answers surely with the passage, and not without it."""

    def ask(passage: bool) -> list[float]:
        examples = [_example(each, passages[each.passage], 0) for each in questions]
        outputs = model.answer(examples, passage) if examples else []
        return [f1_score(output.text, one.answers) for output, one in zip(outputs, examples, strict=True)]

    scores = ask(passage=True)
    found.dropped[OTHERWISE] += sum(score < rules.min_f1 for score in scores)
    questions = [each for each, score in zip(questions, scores, strict=True) if score >= rules.min_f1]
    examples = [_example(each, passages[each.passage], 0) for each in questions]
    for question, confidence in zip(questions, model.confidence(examples) if examples else [], strict=True):
        question.confidence = confidence
    found.dropped[UNSURE] += sum(each.confidence < rules.min_confidence for each in questions)
    questions = [each for each in questions if each.confidence >= rules.min_confidence]
    scores = ask(passage=False)
    found.dropped[KNOWN] += sum(score >= rules.max_f1_without for score in scores)
    return [each for each, score in zip(questions, scores, strict=True) if score < rules.max_f1_without]


def askable_sentences(passage: str) -> list[str]:
    """Return the sentences of a passage that have at least MIN_WORDS words."""
    return [sentence for sentence in sentences_of(passage) if len(sentence.split()) >= MIN_WORDS]


def words_of(text: str) -> set[str]:
    """Return the distinct words of a text after the normalization of answers."""
    return set(normalize_answer(text).split())


def is_span(answer: str, passage: str) -> bool:
    """Return whether an answer is a piece of a passage that begins and ends with whole words.

    >>> is_span("13", "In 1300 and 13 more"), is_span("30", "In 1300")
    (True, False)
    """
    return bool(re.search(r"\w", answer)) and bool(re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", passage))


def word_overlap(question: str, passage: str) -> float:
    """Return the share of a question's content words that resemble a word of the passage, in [0, 1].

    Content words have at least LONG letters, a capital or a digit. Two words resemble each other if they are equal, or
    share their first LONG letters. A question without content words has 0.

    Args:
        question: The question without its first word.
        passage: The passage.

    >>> word_overlap("did the heron launch?", "The heron launched a boat.")
    1.0
    """
    content = [word for word in re.findall(r"\w+", question) if len(word) >= LONG or word != word.lower() or
               any(map(str.isdigit, word))]  # fmt: skip
    known = {word.lower()[:LONG] for word in re.findall(r"\w+", passage)}
    return sum(word.lower()[:LONG] in known for word in content) / len(content) if content else 0.0
