"""A model that writes and answers questions by fixed rules, for tests of task=questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from latentwire.data.examples import Example
from latentwire.lm.decoding import Generated

Answer = Callable[[str], str]


def generated(text: str, cut_off: bool = False) -> Generated:
    """Return a text as the model's answer."""
    return Generated((), text, cut_off)


def last_word(sentence: str) -> str:
    """Return the last word of a sentence, without its full stop."""
    return sentence.split()[-1].rstrip(".")


@dataclass
class ScriptedModel:
    """Writes "BEGINNING does FIRST WORD end?" and answers with the last word of the sentence or the passage.

    Attributes:
        rests: What follows the first words, by beginning; "!" at the end marks a text that was cut off.
        from_sentence: Answer that is written, by question.
        with_passage: Answer with the passage, by question.
        without: Answer without the passage, by question.
        sure: Confidence, by question.
        calls: Names of the calls with the number of their arguments.
    """

    rests: dict[str, str] = field(default_factory=dict)
    from_sentence: dict[str, str] = field(default_factory=dict)
    with_passage: dict[str, str] = field(default_factory=dict)
    without: dict[str, str] = field(default_factory=dict)
    sure: dict[str, float] = field(default_factory=dict)
    calls: list[tuple[str, int]] = field(default_factory=list)

    def write(self, beginnings: Sequence[tuple[str, str]]) -> list[Generated]:
        """Return the rest of each question."""
        self.calls.append(("write", len(beginnings)))
        found = [self.rests.get(first, f"does {sentence.split()[0]} end?") for sentence, first in beginnings]
        return [generated(text.removesuffix("!"), text.endswith("!")) for text in found]

    def answer_sentences(self, questions: Sequence[tuple[str, str]]) -> list[Generated]:
        """Return the written answers."""
        self.calls.append(("answer_sentences", len(questions)))
        return [generated(self.from_sentence.get(question, last_word(sentence))) for sentence, question in questions]

    def answer(self, examples: Sequence[Example], passage: bool) -> list[Generated]:
        """Return the answers with or without the passages."""
        self.calls.append(("with" if passage else "without", len(examples)))
        if passage:
            return [generated(self.with_passage.get(each.question, each.answers[0])) for each in examples]
        return [generated(self.without.get(each.question, "nothing")) for each in examples]

    def confidence(self, examples: Sequence[Example]) -> list[float]:
        """Return the confidence of each answer."""
        self.calls.append(("confidence", len(examples)))
        return [self.sure.get(each.question, 0.9) for each in examples]
