"""Training passages with questions, made from templates. Main entries: `GeneratedSpec`, `generate_examples()`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from latentwire.data.examples import Example
from latentwire.data.patterns import Draw, Pattern, write_pattern
from latentwire.data.template_file import Fact, Subject, Templates, load_templates
from latentwire.harness.assets import file_sha256
from latentwire.harness.errors import UserError
from latentwire.harness.random import generator_for
from latentwire.harness.results import JsonObject

VERSION = 1  # of the generator; raise it when the same templates and seed give other passages
SENTENCES = (4, 7)
WORDS = (24, 58)  # bounds of a passage
TARGET = (28, 46)  # a passage gets facts until it has a number of words drawn from this range
QUESTIONS = (3, 5)
ATTEMPTS = 200  # drafts of a passage before its subject counts as faulty


@dataclass(frozen=True)
class GeneratedSpec:
    """Number of generated passages, and the path of their templates ("": the file that ships with the project)."""

    count: int
    templates: str = ""

    def __post_init__(self) -> None:
        if self.count < 0:
            raise UserError(f"generated={self.count}: must be 0 or more passages")
        if self.templates and not self.count:
            raise UserError(
                f"templates={self.templates}: no passages are generated from them, because generated=0; give a number "
                "of passages, or leave templates out"
            )

    def identity(self) -> JsonObject:
        """Return what decides the passages, apart from the seed.

        Raises:
            UserError: The templates cannot be used.
        """
        templates = load_templates(self.templates)
        return {"count": self.count, "version": VERSION, "templates_sha256": file_sha256(templates.path)}

    def examples(self, seed: int) -> list[list[Example]]:
        """Return the passages, each as the list of its questions.

        Raises:
            UserError: The templates cannot be used.
        """
        return generate_examples(load_templates(self.templates), self.count, seed) if self.count else []


class _Draft(NamedTuple):
    """A passage with its questions: pairs of a question and its answer."""

    text: str
    questions: list[tuple[str, str]]


def generate_examples(templates: Templates, count: int, seed: int) -> list[list[Example]]:
    """Return generated passages, each as the list of the 3 to 5 questions about it.

    Passage number i depends only on the templates, the seed and i, so a longer list begins with a shorter one.

    Args:
        templates: What passages are made from.
        count: Number of passages.
        seed: Seed of the passages.

    Raises:
        UserError: A subject yields no passage of the right length.
    """
    return [_passage(templates, seed, number) for number in range(count)]


def _passage(templates: Templates, seed: int, number: int) -> list[Example]:
    draw = Draw(generator_for(seed, "generated passage", number).initial_seed())
    subject = templates.subjects[draw.below(len(templates.subjects))]
    for _ in range(ATTEMPTS):
        if (draft := _draft(subject, draw)) is not None:
            return [
                Example(f"generated-{seed}-{number}-{place}", draft.text, question, (answer,))
                for place, (question, answer) in enumerate(draft.questions, 1)
            ]
    raise UserError(
        f"templates={templates.path}, subject {subject.name}: none of {ATTEMPTS} drafts has {SENTENCES[0]} to "
        f"{SENTENCES[1]} sentences, {WORDS[0]} to {WORDS[1]} words and {QUESTIONS[0]} answers that occur once; "
        "add facts, shorten sentences, or give the slots more values"
    )


class _Values:
    """The values of a subject's slots in one passage. Each is drawn when it is first used, apart from the others."""

    def __init__(self, subject: Subject, draw: Draw) -> None:
        self.slots, self.draw = subject.slots, draw
        self.drawn: dict[str, str] = {}
        self.used: set[str] = set()  # names and numbers, of which no two values share one

    def __call__(self, name: str) -> str:
        if name not in self.drawn:
            value = self._anew(name)
            marks = {word for word in value.split() if not word.islower()}
            for _ in range(9):
                if not marks & self.used and value not in self.drawn.values():
                    break
                value = self._anew(name)
                marks = {word for word in value.split() if not word.islower()}
            self.used |= marks
            self.drawn[name] = value
        return self.drawn[name]

    def _anew(self, name: str) -> str:
        """Return a new value of a slot; kinds within it are drawn anew as well."""
        return write_pattern(self._one(self.slots[name]), self._anew, self.draw)

    def _one(self, patterns: tuple[Pattern, ...]) -> Pattern:
        return patterns[self.draw.below(len(patterns))]

    def write(self, patterns: tuple[Pattern, ...]) -> str:
        """Return a text of one of these patterns."""
        text = write_pattern(self._one(patterns), self, self.draw)
        return text[0].upper() + text[1:]


def _draft(subject: Subject, draw: Draw) -> _Draft | None:
    """Return a passage, or None if it is too long or too short or has too few answers that occur exactly once."""
    values = _Values(subject, draw)
    target = TARGET[0] + draw.below(TARGET[1] - TARGET[0] + 1)
    order = [subject.facts[place] for place in draw.shuffled(len(subject.facts))]
    facts: list[Fact] = []
    texts: list[str] = []
    size = 0
    for fact in [subject.opening, *order] if subject.opening else order:
        if size >= target:
            break
        facts.append(fact)
        texts.append(values.write(fact.say))
        size += len(texts[-1].split())
    if subject.closing and draw.below(2):
        texts.append(values.write(subject.closing))
    text = " ".join(texts)
    if not (WORDS[0] <= len(text.split()) <= WORDS[1] and SENTENCES[0] <= _sentences(text) <= SENTENCES[1]):
        return None
    questions = list(_questions(facts, text, values))
    chosen = sorted(draw.shuffled(len(questions))[: QUESTIONS[1]])
    return _Draft(text, [questions[place] for place in chosen]) if len(chosen) >= QUESTIONS[0] else None


def _sentences(text: str) -> int:
    return sum(word[-1] in ".!?:" for word in text.split())


def _questions(facts: list[Fact], text: str, values: _Values) -> Iterator[tuple[str, str]]:
    """Yield the questions whose answers occur exactly once in the passage, each with its answer as it stands there."""
    for fact in facts:
        for name, questions in fact.questions.items():
            value = values(name)
            answers = {value, value[0].upper() + value[1:]}  # a sentence may begin with it
            found = [answer for answer in answers if answer in text]
            if sum(text.count(answer) for answer in answers) == 1:
                yield values.write(questions), found[0]
