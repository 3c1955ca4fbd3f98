"""Scores by kind of answer, compared with means by hand."""

from __future__ import annotations

import numpy as np
import pytest

from latentwire.evaluation.answer_kinds import by_kind, kind_of, render_kinds
from latentwire.stats.intervals import mean_interval

ANSWERS = ["noon", "in 1912", "Old Anna", "the 4 boats", "Anna 2", "green", "éclair", "Élodie"]


def test_a_digit_counts_before_a_capital():
    assert [kind_of(answer) for answer in ANSWERS] == [
        "rest", "digit", "name", "digit", "digit", "rest", "rest", "name",
    ]  # fmt: skip


def test_each_kind_has_its_own_mean():
    f1 = {"latent": np.arange(8) / 10, "text": np.ones(8)}
    rows = by_kind(f1, ANSWERS, [str(number) for number in range(8)])
    assert [(row["kind"], row["num_samples"]) for row in rows] == [("digit", 3), ("name", 2), ("rest", 3)]
    means = [row["scores"]["latent"]["f1"] for row in rows]
    assert means == pytest.approx([(0.1 + 0.3 + 0.4) / 3, (0.2 + 0.7) / 2, (0.0 + 0.5 + 0.6) / 3])
    assert rows[0]["scores"]["latent"]["f1_interval"] == mean_interval([0.1, 0.3, 0.4])


def test_intervals_of_a_kind_are_over_its_passages():
    """Six answers in two passages show less than six in as many."""
    f1 = {"latent": np.array([0.2, 0.3, 0.2, 0.8, 0.9, 0.8])}
    answers = ["noon"] * 6
    (apart,) = by_kind(f1, answers, list("abcdef"))
    (together,) = by_kind(f1, answers, list("aaabbb"))
    widths = [row["scores"]["latent"]["f1_interval"] for row in (apart, together)]
    assert widths[1][1] - widths[1][0] > widths[0][1] - widths[0][0]


def test_a_kind_without_answers_has_no_row():
    assert [row["kind"] for row in by_kind({"text": np.ones(1)}, ["noon"], ["a"])] == ["rest"]


def test_the_table_has_a_column_for_each_source_that_is_there():
    rows = by_kind({"latent": np.full(8, 0.5), "text": np.ones(8)}, ANSWERS, list("abcdefgh"))
    head, digit, *_ = render_kinds(rows, {"latent": "latents", "style": "with style", "text": "whole text"})
    assert head.split() == ["F1", "by", "kind", "of", "answer", "n", "latents", "whole", "text"]
    low, high = rows[0]["scores"]["latent"]["f1_interval"]
    assert digit.startswith(f"{'with a digit':24}    3")
    assert f".500 [{low:.3f}, {high:.3f}]".replace("0.", ".") in digit
    assert "1.000 [" in digit
