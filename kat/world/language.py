"""A language of made-up words, whose topics, prompts and valid answers come from a seed. Main entry: `make_world()`.

A prompt names a topic, details that go with it, and an attribute: "which sikota munape rizuso is bumeno". A valid
answer has two words. The first belongs to the topic, and the second to the topic and the attribute. Topics share the
words of their answers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch

from kat.data.prompts import prompt_id
from latentwire.harness.errors import UserError
from latentwire.harness.random import generator_for

VERSION = 1  # of the language, part of the identity of a world; raise it when a seed gives another world
# Surface forms: {t} is a noun of the topic, {a} an adjective of the attribute, {d} and {e} are details of the topic.
FORMS = (
    "name a {a} {t} with {d} {e}",
    "which {t} {d} {e} is {a}",
    "one {a} {t} {d} or {e}",
    "tell me of {d} {t} that is {a} {e}",
    "what {a} {e} {t} has {d}",
    "my {t} {d} needs {a} {e}",
    "{d} {t} {e} and {a} please",
    "find {a} {d} {t} for {e}",
    "of all {t} {d} {e} pick a {a} one",
    "{t} {e} {d} but {a}",
    "a {t} then make {d} {e} {a}",
    "do you like {a} {d} {t} {e}",
)
GIVEN = sorted({word for text in FORMS for word in text.split() if "{" not in word})  # words of the forms
NOUNS, DETAILS, ADJECTIVES = 3, 8, 3  # words of a topic that name it or go with it, and synonyms of an attribute
FIRST_WORDS, SECOND_WORDS = 40, 120  # words that the answers of all topics share
# Numbers of first and second words of a topic's valid answers. Their products are the numbers of valid answers.
SHAPES = ((2, 4), (2, 6), (3, 5), (4, 4), (3, 8), (4, 6), (4, 8))
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


@dataclass
class WorldSpec:
    """Sizes of a world."""

    topics: int
    prompts: int  # of all topics
    exponent: float  # the topic of rank r has a share of the prompts proportional to r to the power of minus this
    attributes: int

    def __post_init__(self) -> None:
        if self.topics < 2 or self.attributes < 1:
            raise UserError(f"world.topics={self.topics} world.attributes={self.attributes}: must be at least 2 and 1")
        if not 0 <= self.exponent <= 3:
            raise UserError(f"world.exponent={self.exponent}: must be from 0 (equal topics) to 3")
        most = self.attributes * renderings()
        sizes = topic_sizes(self)
        if sizes[-1] < 2 or sizes[0] > most:
            raise UserError(
                f"world.prompts={self.prompts}: gives topics of {sizes[-1]} to {sizes[0]} prompts, and a topic has 2 "
                f"to {most}; change world.prompts or world.exponent"
            )


@dataclass(frozen=True)
class Topic:
    """A topic of the language.

    Attributes:
        nouns: Its names, which mean the same.
        details: Other words of its prompts. They do not change which answers are valid.
        first: First words of its answers.
        pool: Second words of its answers, for all attributes together.
        second: Second words of the valid answers for each attribute, a part of `pool`.
    """

    nouns: tuple[str, ...]
    details: tuple[str, ...]
    first: tuple[str, ...]
    pool: tuple[str, ...]
    second: tuple[tuple[str, ...], ...]

    def valid(self, attribute: int) -> list[str]:
        """Return the valid answers to a prompt with an attribute."""
        return [f"{first} {second}" for first in self.first for second in self.second[attribute]]


class WorldPrompt(TypedDict):
    """A row of the prompts file."""

    id: str
    prompt: str
    topic: int  # 0 has the most prompts
    topic_size: int  # number of prompts of the topic
    attribute: int
    form: int
    valid: list[str]


@dataclass(frozen=True)
class World:
    """A language.

    Attributes:
        spec: Its sizes.
        seed: Its seed.
        topics: Topics, the largest first.
        adjectives: Names of each attribute.
        first_words: First words of all answers.
        second_words: Second words of all answers.
    """

    spec: WorldSpec
    seed: int
    topics: tuple[Topic, ...]
    adjectives: tuple[tuple[str, ...], ...]
    first_words: tuple[str, ...]
    second_words: tuple[str, ...]

    def words(self) -> list[str]:
        """Return all words of prompts and answers, each once."""
        own = [word for topic in self.topics for word in (*topic.nouns, *topic.details)]
        return [*GIVEN, *own, *itertools.chain(*self.adjectives), *self.first_words, *self.second_words]

    def render(self, topic: int, attribute: int, choice: int) -> tuple[str, int]:
        """Return a prompt and the number of its form.

        Args:
            topic: Number of the topic.
            attribute: Number of the attribute.
            choice: Number of a combination of form, synonyms and details, below `renderings()`.
        """
        words = self.topics[topic]
        choice, form = divmod(choice, len(FORMS))
        choice, noun = divmod(choice, NOUNS)
        choice, adjective = divmod(choice, ADJECTIVES)
        first, second = divmod(choice, DETAILS - 1)
        details = words.details[first], words.details[second + (second >= first)]  # two different ones
        names = {"t": words.nouns[noun], "a": self.adjectives[attribute][adjective], "d": details[0], "e": details[1]}
        return FORMS[form].format(**names), form

    def prompts(self) -> list[WorldPrompt]:
        """Return the prompts of all topics, the largest topic first. A topic's prompts are a random choice."""
        rows: list[WorldPrompt] = []
        for number, size in enumerate(topic_sizes(self.spec)):
            order = torch.randperm(self.spec.attributes * renderings(), generator=self._random("prompts", number))
            for index in order[:size].tolist():
                attribute, choice = divmod(index, renderings())
                text, form = self.render(number, attribute, choice)
                rows.append(
                    {
                        "id": prompt_id([{"role": "user", "content": text}]),
                        "prompt": text,
                        "topic": number,
                        "topic_size": size,
                        "attribute": attribute,
                        "form": form,
                        "valid": self.topics[number].valid(attribute),
                    }
                )
        return rows

    def _random(self, *names: object) -> torch.Generator:
        return generator_for(self.seed, "world", *names)


def renderings() -> int:
    """Return the number of prompts of a topic with one attribute: forms, synonyms and pairs of details."""
    return len(FORMS) * NOUNS * ADJECTIVES * DETAILS * (DETAILS - 1)


def topic_sizes(spec: WorldSpec) -> list[int]:
    """Return the number of prompts of each topic, largest first: shares by a power law, rounded so that they add up."""
    shares = [rank**-spec.exponent for rank in range(1, spec.topics + 1)]
    exact = [spec.prompts * share / sum(shares) for share in shares]
    sizes = [int(value) for value in exact]
    by_rest = sorted(range(spec.topics), key=lambda number: (sizes[number] - exact[number], number))
    for number in by_rest[: spec.prompts - sum(sizes)]:
        sizes[number] += 1
    return sorted(sizes, reverse=True)


def make_world(spec: WorldSpec, seed: int) -> World:
    """Return the language of a seed.

    The numbers of valid answers do not depend on the sizes of the topics.

    Args:
        spec: Its sizes.
        seed: Its seed.
    """
    generator = generator_for(seed, "world", "language")
    count = spec.topics * (NOUNS + DETAILS) + spec.attributes * ADJECTIVES + FIRST_WORDS + SECOND_WORDS
    words = iter(made_up_words(count, generator))
    nouns = [tuple(itertools.islice(words, NOUNS)) for _ in range(spec.topics)]
    details = [tuple(itertools.islice(words, DETAILS)) for _ in range(spec.topics)]
    adjectives = tuple(tuple(itertools.islice(words, ADJECTIVES)) for _ in range(spec.attributes))
    first_words = tuple(itertools.islice(words, FIRST_WORDS))
    second_words = tuple(words)
    shapes = torch.randperm(spec.topics, generator=generator).tolist()
    topics = []
    for number in range(spec.topics):
        first, second = SHAPES[shapes[number] % len(SHAPES)]
        pool = _drawn(second_words, 2 * second, generator)
        by_attribute = tuple(_drawn(pool, second, generator) for _ in range(spec.attributes))
        heads = _drawn(first_words, first, generator)
        topics.append(Topic(nouns[number], details[number], heads, pool, by_attribute))
    return World(spec, seed, tuple(topics), adjectives, first_words, second_words)


def made_up_words(count: int, generator: torch.Generator) -> list[str]:
    """Return different words of three syllables, none of them a word of the forms."""
    syllables = [consonant + vowel for consonant in CONSONANTS for vowel in VOWELS]
    found: dict[str, None] = {}
    while len(found) < count:
        parts = torch.randint(len(syllables), (3,), generator=generator).tolist()
        found.setdefault("".join(syllables[part] for part in parts))
    return list(found)


def _drawn(words: Sequence[str], count: int, generator: torch.Generator) -> tuple[str, ...]:
    """Return `count` different words."""
    return tuple(words[index] for index in torch.randperm(len(words), generator=generator)[:count].tolist())
