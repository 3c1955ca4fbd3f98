"""The question of the norm: F1 by factor, the rule of the conclusion, and rows of both tables."""

from __future__ import annotations

import numpy as np
import pytest

from latentwire.analysis.latent_norm import MEASURES, KindScores, judge_norm, layer_rows, nearness_rows, norm_curve

FACTORS = [0.1, 1.0, 10.0, 100.0]
PASSAGES = [f"p{number // 2}" for number in range(120)]
ONE, SEED = 1, 0


def kind(name: str, length: float, *levels: float, seeds: int = 3, more: int = 1) -> KindScores:
    """Return a kind whose share of right answers is `levels` by factor; each further seed has `more` right answers."""
    f1 = np.zeros((seeds, len(levels), len(PASSAGES)))
    for seed in range(seeds):
        for place, level in enumerate(levels):
            f1[seed, place, : round(level * len(PASSAGES)) + (more * seed if level else 0)] = 1
    return KindScores(name, f1, length)


def judge(*kinds: KindScores, empty: float = 0.0):
    return judge_norm(kinds, ONE, kind("empty", 1, empty, seeds=1).f1[0, 0], PASSAGES, SEED)


def test_a_curve_has_means_intervals_and_its_range():
    """F1 of .5 at .1 and 1, .4 at 10, 0 at 100: the drop to .4 is seen with 120 questions, so the range ends at 1."""
    curve = norm_curve(kind("latents", 1.0, 0.5, 0.5, 0.4, 0.0), FACTORS, PASSAGES, SEED)
    assert (curve["seeds"], curve["over"], curve["tolerated"]) == (3, "seeds", (0.1, 1.0))
    first = curve["points"][0]
    assert first["f1"] == pytest.approx((60 + 61 + 62) / 360)
    half = 4.302653 * (1 / 120) / 3**0.5  # Student's 97.5% quantile of 2 degrees of freedom; no skewness
    assert first["interval"] == pytest.approx((first["f1"] - half, first["f1"] + half), abs=1e-6)
    wide = norm_curve(kind("tokens", 1.0, 0.5, 0.5, 0.5, 0.5, seeds=1), FACTORS, PASSAGES, SEED)
    assert (wide["over"], wide["tolerated"]) == ("passages", (0.1, 100.0))
    gap = norm_curve(kind("gap", 1.0, 0.0, 0.5, 0.0, 0.5), FACTORS, PASSAGES, SEED)
    assert gap["tolerated"] == (1.0, 1.0)  # a range has no hole


def test_the_conclusion_follows_the_long_kinds():
    reference = kind("short", 1.1, 0.5, 0.5, more=0)
    assert judge(reference, kind("long", 10, 0, 0.2))["verdict"] == "harmful"
    assert judge(reference, kind("long", 10, 0, 0.8))["verdict"] == "needed"
    assert judge(reference, kind("a", 10, 0, 0.8), kind("b", 100, 0, 0.2))["verdict"] == "mixed"
    assert judge(reference, kind("long", 10, 0, 0.2, more=0))["verdict"] == "undecided"  # no spread is known
    found = judge(kind("long", 10, 0, 0.2), reference)
    assert found["reference"] == "short"  # the nearest to the tokens' length, in any order
    assert "long is -0.292 F1" in found["sentence"]
    assert found["differences"][0]["difference"] == pytest.approx((-36 - 35 - 34) / 360)


def test_indifference_needs_a_test_of_its_own():
    """Differences of 1, 0 and -1 answers of 120 are within .05 F1; of 12, 0 and -12 answers they show nothing."""
    reference = kind("short", 1.0, 0.5, 0.5)

    def near(answers: int) -> KindScores:
        own = KindScores("long", reference.f1.copy(), 10.0)
        own.f1[0, ONE, 60 : 60 + answers] = 1
        own.f1[2, ONE, 62 - answers : 62] = 0
        return own

    assert judge(reference, near(1))["verdict"] == "indifferent"
    found = judge(reference, near(12))
    assert found["verdict"] == "undecided" and "nor that there is none" in found["sentence"]


def test_no_conclusion_without_long_or_readable_latents():
    near_tokens = judge(kind("a", 1.0, 0, 0.5), kind("b", 2.9, 0, 0.1))
    assert (
        near_tokens["verdict"] == "undecided" and "no kind of latents is more than 3 times" in near_tokens["sentence"]
    )
    unread = judge(kind("a", 1.0, 0, 0.1), kind("b", 10, 0, 0.8), empty=0.1)
    assert unread["verdict"] == "undecided" and "no better than without the passage" in unread["sentence"]
    single = judge(kind("a", 1.0, 0, 0.5, seeds=1), kind("b", 10, 0, 0.1, seeds=1))
    assert single["verdict"] == "undecided" and "interval" not in single["differences"][0]


def test_rows_of_layers_are_means_over_passages():
    rms, turn, start = np.array([[1.0, 4.0], [3.0, 8.0]]), np.array([[0.5], [0.7]]), np.array([[0.1], [0.3]])
    rows = layer_rows("latents", 10.0, rms, turn, start)
    assert [(row["layer"], row["rms"], row["turn"], row["from_input"]) for row in rows] == [
        (0, 2.0, None, None), (1, 6.0, pytest.approx(0.6), pytest.approx(0.2))
    ]  # fmt: skip
    low, high = rows[1]["turn_interval"]
    assert low == pytest.approx(0.6 - 12.7062 * 0.1, abs=1e-4) or low == -1.0  # Student's with 1 degree of freedom
    assert high == pytest.approx(0.6 + 12.7062 * 0.1, abs=1e-4)


def test_nearest_tokens_of_right_answers_and_others():
    right, passages = np.array([1.0, 0.5, 1.0, 0.0]), ["a", "a", "b", "c"]
    values = {name: np.array([0.8, 0.8, 0.4, 0.1]) for name in MEASURES}
    rows = nearness_rows("latents", right, passages, values, 0.2)
    assert [(row["answers"], row["questions"], row["passages"]) for row in rows] == [
        ("right", 2, 2),
        ("not right", 2, 2),
    ]
    assert [row["means"]["group"] for row in rows] == pytest.approx([0.6, 0.45])
    assert rows[0]["random_cosine"] == 0.2
    assert len(nearness_rows("latents", np.ones(4), passages, values, 0.2)) == 1  # no row without questions
