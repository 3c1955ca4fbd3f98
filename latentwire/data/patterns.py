"""Patterns of text with slots, alternatives and numbers. Main entries: `parse_pattern()`, `write_pattern()`.

{name}  {name.first}  {name.last}    the value of a slot, or its first or last word
[one|two|three]                      one of these, each of them a pattern
{12..95}  {10..99*100}               a number in digits, or a multiple of a step; {1880..1990:year} has no comma,
                                     {12..95:words} is in words
a(n) word                            the article that suits the word
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

STYLES = ("", "words", "year")
PARTS = {"": lambda text: text, "first": lambda text: text.split()[0], "last": lambda text: text.split()[-1]}
_NUMBER = re.compile(r"(\d+)\.\.(\d+)(?:\*(\d+))?(?::(\w+))?")
_SLOT = re.compile(r"([a-z]\w*)(?:\.(\w+))?")
_ARTICLE = re.compile(r"\b([aA])\(n\) (?=(\S+))")
_VOWEL = re.compile(r"(?!eu|uni|use|one\b|once)[aeiou]|hour|honest|heir|8|1[18]\b", flags=re.IGNORECASE)
_ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_ONES += [f"{stem}teen" for stem in ("thir", "four", "fif", "six", "seven", "eigh", "nine")]
_TENS = ["", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


class PatternError(ValueError):
    """A pattern that cannot be read. The message is the reason."""


@dataclass(frozen=True)
class Number:
    """A number between two bounds, times a step."""

    low: int
    high: int
    step: int
    style: str


@dataclass(frozen=True)
class Slot:
    """The value of a slot, or a part of it (one of `PARTS`)."""

    name: str
    part: str


@dataclass(frozen=True)
class Alternatives:
    """Patterns of which one is used."""

    options: tuple[Pattern, ...]


Pattern: TypeAlias = "tuple[str | Number | Slot | Alternatives, ...]"


class Draw:
    """Random choices from a seed. They are the same with every version of Python."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random  # noqa: S311  # of the methods, only random() is guaranteed to stay

    def below(self, number: int) -> int:
        """Return a number from 0 to `number` - 1."""
        return int(self._random() * number)

    def shuffled(self, size: int) -> list[int]:
        """Return the numbers from 0 to `size` - 1 in random order."""
        order = list(range(size))
        for last in range(size - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order


def parse_pattern(text: str) -> Pattern:
    """Return the pattern that a text describes.

    Raises:
        PatternError: A bracket is not closed, or the content of braces is neither a slot nor a number.
    """
    pattern, end = _parse(text, 0, "")
    assert end == len(text)
    return pattern


def _parse(text: str, start: int, ends: str) -> tuple[Pattern, int]:
    """Return the pattern up to one of the characters `ends`, or to the end of the text, and the place of the end."""
    nodes: list[str | Number | Slot | Alternatives] = []
    place = start
    while place < len(text):
        sign = text[place]
        if sign in ends:
            return tuple(nodes), place
        if sign == "[":
            options, place = _options(text, place)
            nodes.append(Alternatives(options))
        elif sign == "{":
            end = text.find("}", place)
            if end < 0:
                raise PatternError("a { is not closed")
            nodes.append(_braces(text[place + 1 : end]))
            place = end + 1
        elif sign in "]}|":
            raise PatternError(f"a {sign} stands outside of brackets")
        else:
            end = next((at for at in range(place, len(text)) if text[at] in "[]{}|"), len(text))
            nodes.append(text[place:end])
            place = end
    if ends:
        raise PatternError("a [ is not closed")
    return tuple(nodes), place


def _options(text: str, start: int) -> tuple[tuple[Pattern, ...], int]:
    """Return the options of the bracket that opens at `start`, and the place after it."""
    options, place = [], start
    while text[place] != "]":
        option, place = _parse(text, place + 1, "|]")
        options.append(option)
    if len(options) < 2:
        raise PatternError(f"{text[start : place + 1]} has one alternative; give two or more, with | between them")
    return tuple(options), place + 1


def _braces(inside: str) -> Number | Slot:
    if found := _NUMBER.fullmatch(inside):
        low, high, step, style = int(found[1]), int(found[2]), int(found[3] or 1), found[4] or ""
        if style not in STYLES or low > high or step < 1 or (style == "words" and high * step > 999_999):
            raise PatternError(f"{{{inside}}} is not a range; write {{LOW..HIGH}}, with :words or :year after it")
        return Number(low, high, step, style)
    if (found := _SLOT.fullmatch(inside)) and (found[2] or "") in PARTS:
        return Slot(found[1], found[2] or "")
    raise PatternError(f"{{{inside}}} is neither a slot, such as {{name}} or {{name.last}}, nor a range of numbers")


def slot_counts(pattern: Pattern) -> dict[str, tuple[int, int]]:
    """Return how often the pattern has each slot in full: the least and the largest number over all alternatives.

    A part of a slot, such as {name.last}, counts as 0.
    """
    counts: dict[str, tuple[int, int]] = {}
    for node in pattern:
        if isinstance(node, Slot):
            _add(counts, {node.name: (int(not node.part), int(not node.part))})
        elif isinstance(node, Alternatives):
            found = [slot_counts(option) for option in node.options]
            _add(counts, spread(found))
    return counts


def spread(found: Iterable[Mapping[str, tuple[int, int]]]) -> dict[str, tuple[int, int]]:
    """Return the counts of slots over alternatives: the least and the largest number of any of them."""
    found = list(found)
    names = {name: None for each in found for name in each}
    return {
        name: (min(each.get(name, (0, 0))[0] for each in found), max(each.get(name, (0, 0))[1] for each in found))
        for name in names
    }


def _add(counts: dict[str, tuple[int, int]], more: Mapping[str, tuple[int, int]]) -> None:
    for name, (least, most) in more.items():
        before = counts.get(name, (0, 0))
        counts[name] = (before[0] + least, before[1] + most)


def write_pattern(pattern: Pattern, value: Callable[[str], str], draw: Draw) -> str:
    """Return a text of the pattern.

    Args:
        pattern: The pattern.
        value: Function that returns the value of a slot.
        draw: Source of the random choices.
    """
    pieces: list[str] = []
    _write(pattern, value, draw, pieces)
    text = "".join(pieces)
    return _ARTICLE.sub(_article, text) if "(n)" in text else text


def _write(pattern: Pattern, value: Callable[[str], str], draw: Draw, pieces: list[str]) -> None:
    for node in pattern:
        if isinstance(node, str):
            pieces.append(node)
        elif isinstance(node, Slot):
            pieces.append(PARTS[node.part](value(node.name)))
        elif isinstance(node, Alternatives):
            _write(node.options[draw.below(len(node.options))], value, draw, pieces)
        else:
            pieces.append(spelled_number((node.low + draw.below(node.high - node.low + 1)) * node.step, node.style))


def _article(found: re.Match[str]) -> str:
    return f"{found[1]}{'n' if _VOWEL.match(found[2]) else ''} "


def spelled_number(number: int, style: str = "") -> str:
    """Return a number from 0 to 999,999 as a text; `style` is one of `STYLES`."""
    if style == "year":
        return str(number)
    return _in_words(number) if style == "words" else f"{number:,}"


def _in_words(number: int) -> str:
    if number < 20:
        return _ONES[number]
    if number < 100:
        return _TENS[number // 10] + (f"-{_ONES[number % 10]}" if number % 10 else "")
    size, word, join = (100, "hundred", " and ") if number < 1000 else (1000, "thousand", " ")
    rest = number % size
    if size == 1000 and 0 < rest < 100:
        join = " and "
    return f"{_in_words(number // size)} {word}" + (f"{join}{_in_words(rest)}" if rest else "")
