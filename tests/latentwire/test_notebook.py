"""Scores compared in a notebook: passages are the units, and scores are in [0, 1]."""

from __future__ import annotations

import pytest

from latentwire import compare_scores
from latentwire.harness.errors import UserError

CHANGED = [0.25] * 12 + [1.0] * 12


def test_questions_about_one_passage_flip_together():
    """Twelve examples of as many passages show a difference; twelve questions about one passage do not."""
    alone, apart, together = (
        compare_scores([CHANGED], [1.0] * 24, passages=passages)[0]
        for passages in (None, [str(n) for n in range(24)], [str(n // 12) for n in range(24)])
    )
    assert alone == apart and alone.difference == together.difference == -0.375
    assert alone.p_value < 0.05 and alone.interval[1] < 0
    assert together.p_value > 0.4 and together.interval[1] > 0


def test_equal_scores_may_hide_a_change_of_size_one():
    """Among 24 equal scores no change was seen: the rule of three still allows one in eight."""
    (same,) = compare_scores([[0.5] * 24], [0.5] * 24)
    low, high = same.interval
    assert -low == high > 0.1 and same.p_value == 1


def test_scores_of_another_scale_or_number_are_rejected():
    with pytest.raises(UserError, match=r"a score of 40: must be in \[0, 1\]; divide all scores"):
        compare_scores([[40.0, 1.0]], [0.0, 1.0])
    with pytest.raises(UserError, match=r"a score of nan: must be in"):
        compare_scores([[1.0, float("nan")]], [0.0, 1.0])
    for passages, baseline in ((["a"], [0.0, 1.0]), (None, [0.0])):
        with pytest.raises(UserError, match=r"\[1, 2\] examples: the systems, the baseline and the passages"):
            compare_scores([[0.0, 1.0]], baseline, passages=passages)
