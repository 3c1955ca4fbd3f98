"""Shipped rewards against values worked out by hand."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kat.grpo.numbers import are_equal, last_number
from kat.grpo.reward_calls import calls_of
from kat.grpo.rewards import exact_match, f1, format, length, novelty, number, regex, valid_answer
from latentwire.harness.errors import UserError


@pytest.mark.parametrize(
    ("completion", "references", "em", "f1_of"),
    [
        ("The Nile.", ["nile"], 1.0, 1.0),
        ("the river Nile", ["Nile"], 0.0, 2 / 3),  # 1 of 2 words, and all of 1: 2 * 0.5 * 1 / 1.5
        ("Nile", ["Amazon", "the Nile"], 1.0, 1.0),
        ("red red blue", ["red blue blue"], 0.0, 2 / 3),
        ("", ["Nile"], 0.0, 0.0),
        ("Nile", [], None, None),
    ],
)
def test_answers_are_scored_as_in_squad(completion, references, em, f1_of):
    assert exact_match([completion], [references]) == [em]
    assert f1([completion], [references]) == [f1_of if f1_of is None else pytest.approx(f1_of)]


@pytest.mark.parametrize(
    ("text", "value", "is_percent"),
    [
        ("1,000", "1000", False),
        ("$1,234.50 in total", "1234.5", False),
        ("1,000,000.25", "1000000.25", False),
        ("1.0", "1", False),
        (".5", "0.5", False),
        ("so it is 1/2.", "1/2", False),
        ("3 / 4 cup", "3/4", False),
        ("1/2.5", "2/5", False),
        ("50%", "50", True),
        ("12.5 \\%", "12.5", True),
        ("-7", "-7", False),
        ("\u22127", "-7", False),
        ("-$5", "-5", False),
        ("x=-3.5", "-7/2", False),
        ("5-3", "3", False),  # a difference
        ("10 - 3 = 7", "7", False),
        ("- 5 apples", "5", False),  # an item of a list
        ("(4)-2", "2", False),
        ("1e3", "1000", False),
        ("2.5E-2", "0.025", False),
        ("3em", "3", False),
        ("first 1, then 2, then 3.", "3", False),
        ("1, 2, 3", "3", False),
        ("5 tons of CO2", "5", False),
        ("#### 72", "72", False),
        ("7km", "7", False),
        ("+8", "8", False),
    ],
)
def test_the_last_number_of_a_text(text, value, is_percent):
    found = last_number(text)
    assert found is not None and (found.value, found.is_percent) == (Fraction(value), is_percent)


@pytest.mark.parametrize("text", ["", "none", "CO2", "x_5", "1/0", "9" * 1001])
def test_a_text_without_a_number(text):
    assert last_number(text) is None


@pytest.mark.parametrize(
    ("completion", "reference", "expected"),
    [
        ("1,000", "1000.0", 1.0),
        ("1/2", "0.5", 1.0),
        ("0.1", "1/10", 1.0),
        ("50%", "50", 1.0),
        ("50%", "0.5", 1.0),
        ("0.5", "50%", 1.0),
        ("0.5%", "50%", 0.0),
        ("50%", "50.0 %", 1.0),
        ("0.5", "50", 0.0),
        ("-3", "3", 0.0),
        ("it is 4, no, 5", "4", 0.0),
        ("no idea", "4", 0.0),
        ("no idea", "none", None),
        ("4", "16 - 3 - 4 = 9 eggs.\n#### 18", 0.0),
        ("18 dollars", "16 - 3 - 4 = 9 eggs.\n#### 18", 1.0),
    ],
)
def test_numbers_are_compared_by_value(completion, reference, expected):
    assert number([completion], [[reference]]) == [expected]


def test_any_reference_with_a_number_counts():
    assert number(["2", "2", "2"], [["one", "2"], ["1", "3"], []]) == [1.0, 0.0, None]


def test_the_tolerance_is_a_share_of_the_reference():
    texts, right = ["0.33", "0.34", "0.30"], [["1/3"]] * 3
    assert number(texts, right) == [0.0, 0.0, 0.0]
    assert number(texts, right, tolerance=0.03) == [1.0, 1.0, 0.0]
    assert number(["-102", "-98", "-103"], [["-100"]] * 3, tolerance=0.02) == [1.0, 1.0, 0.0]
    assert number(["0.001"], [["0"]], tolerance=0.5) == [0.0]


@given(st.integers(-(10**15), 10**15), st.integers(0, 6))
@example(0, 0)
def test_a_number_equals_itself_in_any_notation(whole, places):
    value = Fraction(whole, 10**places)
    decimal = f"{whole / 10**places:.6f}" if abs(whole) < 10**9 else str(whole)
    exact = value if abs(whole) < 10**9 else Fraction(whole)
    for text in (decimal, f"the answer is {decimal}.", f"{exact.numerator}/{exact.denominator}"):
        found = last_number(text)
        assert found is not None and found.value == exact, text
    grouped = last_number(f"{whole:,}")
    assert grouped is not None and grouped.value == whole


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_two_texts_can_be_compared(one, other):
    first, second = last_number(one), last_number(other)
    if first is not None and second is not None:
        assert are_equal(first, second) == are_equal(second, first)
        assert are_equal(first, first)


def test_a_pattern_occurs_anywhere_or_is_the_whole():
    texts = ["<a>x</a>", " <a>x\ny</a>\n", "so <a>x</a>", "", "<a></a>"]
    assert regex(texts, pattern="<a>.+</a>") == [1.0, 0.0, 1.0, 0.0, 0.0]
    assert format(texts, pattern="<a>.+</a>") == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert format(["yes", "yes or no"], pattern="yes|yes or no") == [1.0, 1.0]


def test_the_length_is_best_at_the_target():
    texts = ["", "one", "one two", "one  two\nthree", "1 2 3 4", "1 2 3 4 5 6"]
    assert length(texts, [[0]] * 6, target=2) == [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    assert length(["x y z"] * 3, [[1], [1, 2, 3, 4], [1] * 7], target=4, unit="tokens") == [0.25, 1.0, 0.25]


def test_novelty_is_the_share_of_others_that_differ():
    texts = ["The Nile.", "nile", "Amazon", "a Rhine", "NILE!", "Nile"]
    # the group of "q" has three of one class and one other; the only completion of "r" is new; "s" has one class
    assert novelty(["q", "q", "q", "r", "q", "s"], texts) == [1 / 3, 1 / 3, 1.0, 1.0, 1 / 3, 1.0]
    assert novelty(["q"] * 4, ["x", "y", "z", "w"]) == [1.0] * 4
    assert novelty(["q"] * 3, [""] * 3) == [0.0] * 3


def test_novelty_separates_draws_of_one_prompt():
    texts = ["x", "x", "x", "y"]
    assert novelty(["q"] * 4, texts, groups=[0, 0, 1, 1]) == [0.0, 0.0, 1.0, 1.0]
    assert novelty(["q"] * 4, texts) == [1 / 3, 1 / 3, 1 / 3, 1.0]


def test_novelty_takes_a_partition():
    """The labels of a group decide, not the texts."""
    texts = ["ab", "cd", "e", "ab"]
    assert novelty(["q"] * 4, texts, partition=lambda group: [len(text) for text in group]) == [
        1 / 3,
        1 / 3,
        1.0,
        1 / 3,
    ]
    with pytest.raises(UserError, match=r"novelty\.partition: returned 1 labels for 4 completions; correct"):
        novelty(["q"] * 4, texts, partition=lambda group: [1])


def test_a_valid_answer_is_rewarded_by_the_column_valid():
    """Of three valid answers a bias favours one."""
    valid = ["a b", "c d", "e f"]
    assert valid_answer(["a b", "a d", " e f "], [valid] * 3) == [1.0, 0.0, 1.0]
    biased = valid_answer([*valid, "x"], [valid] * 4, bias=0.5)
    assert sorted(biased[:3]) == [1.0, 1.0, 1.5] and biased[3] == 0.0


def test_the_bias_of_a_valid_answer_is_checked():
    settings = {"valid_answer": {"bias": -0.5}}
    with pytest.raises(UserError, match=r"^grpo.reward_settings.valid_answer.bias=-0.5: must be 0 \(none\) or more$"):
        calls_of(["valid_answer"], settings)
    call = calls_of(["valid_answer"], {"valid_answer": {"bias": 0.5, "valid": "answers"}})["valid_answer"]
    assert call.columns(["id", "answers"]) == {"valid": "answers"}
