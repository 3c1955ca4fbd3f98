"""Patterns of text: numbers, articles, alternatives and slots."""

from __future__ import annotations

import pytest

from latentwire.data.patterns import Draw, parse_pattern, slot_counts, spelled_number, write_pattern


def write(text, seed=0, **values):
    return write_pattern(parse_pattern(text), values.__getitem__, Draw(seed))


@pytest.mark.parametrize(
    ("number", "style", "expected"),
    [
        (12, "", "12"), (1234, "", "1,234"), (1234, "year", "1234"), (19, "words", "nineteen"),
        (40, "words", "forty"), (76, "words", "seventy-six"), (100, "words", "one hundred"),
        (815, "words", "eight hundred and fifteen"), (2007, "words", "two thousand and seven"),
        (13250, "words", "thirteen thousand two hundred and fifty"),
    ],
)  # fmt: skip
def test_numbers_are_written(number, style, expected):
    assert spelled_number(number, style) == expected


@pytest.mark.parametrize(
    ("word", "article"),
    [("oak", "an"), ("uniform", "a"), ("hour", "an"), ("one-way", "a"), ("8", "an"), ("11", "an"), ("18", "an"),
     ("110", "a"), ("umbrella", "an"), ("European", "a"), ("pine", "a")],
)  # fmt: skip
def test_the_article_suits_the_word(word, article):
    assert write("A(n) {x}, a(n) {x}", x=word) == f"{article.title()} {word}, {article} {word}"


def test_every_value_of_a_range_and_every_alternative_occurs():
    assert {write("{3..5*100}", seed) for seed in range(60)} == {"300", "400", "500"}
    assert {write("[a|b [c|d]|]", seed) for seed in range(90)} == {"a", "b c", "b d", ""}


def test_parts_of_a_slot():
    assert write("{who.first}, {who.last}, {who}", who="Ada van Moor") == "Ada, Moor, Ada van Moor"


def test_slots_are_counted_over_alternatives():
    counts = slot_counts(parse_pattern("{a} [{b}|{b} {c}] {d.last} {a}"))
    assert counts == {"a": (2, 2), "b": (1, 1), "c": (0, 1), "d": (0, 0)}


def test_shuffled_is_a_permutation_that_varies():
    orders = {tuple(Draw(seed).shuffled(4)) for seed in range(400)}
    assert len(orders) == 24 and all(sorted(order) == [0, 1, 2, 3] for order in orders)
