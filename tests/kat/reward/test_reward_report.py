"""The reward model's report: hand-computed accuracies, intervals over prompts, calibration, the length-only rule."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kat.reward.report import (
    ScoredPair,
    calibration,
    deciles,
    evaluate_by_part,
    evaluate_pairs,
    intervals_over_prompts,
    log_loss,
    longer_wins,
    points,
    render_reward_report,
)
from latentwire.stats.intervals import bootstrap_interval, wilson_interval
from tests.helpers.random import numbers

PAIRS = [
    ScoredPair("p", "a", 2.0, 5, 3, 1),
    ScoredPair("p", "a", -1.0, 2, 3, 1),
    ScoredPair("q", "b", 0.0, 4, 4, 10),
    ScoredPair("r", "b", 0.5, 1, 9, 10),
]


def test_the_length_rule_follows_the_majority():
    assert longer_wins([(5, 3), (2, 1), (1, 4), (3, 3)]) is True
    assert longer_wins([(5, 3), (1, 2), (1, 4), (3, 3)]) is False
    assert longer_wins([(5, 3), (3, 5)]) is True


def test_deciles_are_of_equal_size_and_rise_with_the_density():
    assert deciles([float(v) for v in range(20)]) == [n for n in range(1, 11) for _ in range(2)]
    assert deciles([3.0, 1.0, 2.0]) == [7, 1, 4]
    assert deciles([2.0] * 10) == list(range(1, 11))


def test_points_count_a_tie_half():
    assert points([3.0, -0.1, 0.0]).tolist() == [1.0, 0.0, 0.5]


def test_judge_counts_by_hand():
    found = evaluate_pairs(PAIRS, True, 0)
    assert (found["pairs"], found["prompts"], found["ties"]) == (4, 3, 1)
    assert found["accuracy"] == (1 + 0 + 0.5 + 1) / 4
    losses = [math.log(1 + math.exp(-m)) for m in (2, -1, 0, 0.5)]
    assert found["log_loss"] == pytest.approx(sum(losses) / 4)
    rule = found["length_only"]
    assert (rule["rule"], rule["ties"], rule["accuracy"]) == ("longer", 1, (1 + 0 + 0.5 + 0) / 4)
    assert rule["difference"] == found["accuracy"] - rule["accuracy"] == 0.25
    shorter = evaluate_pairs(PAIRS, False, 0)["length_only"]
    assert (shorter["rule"], shorter["accuracy"]) == ("shorter", (0 + 1 + 0.5 + 1) / 4)
    assert "length_only" not in evaluate_pairs(PAIRS, None, 0)


def test_each_quantity_has_its_own_interval():
    values = np.array([[1.0, 0, 0.5, 1], [0.1, 1.3, 0.7, 0.5], [1, 0, 0.5, 0], [0, 0, 0, 1]])
    found = evaluate_pairs(PAIRS, True, 7)
    margins = np.array([2, -1, 0, 0.5])
    values[1] = np.log1p(np.exp(-margins))
    expected = intervals_over_prompts(values, ["p", "p", "q", "r"], 7)
    rule = found["length_only"]
    told = [found["accuracy_interval"], found["log_loss_interval"], rule["accuracy_interval"],
            rule["difference_interval"]]  # fmt: skip
    for one, other in zip(told, expected, strict=True):
        assert one == pytest.approx(list(other))


def test_one_pair_for_each_prompt_gives_the_plain_bootstrap():
    scores = [1.0, 0.0, 1.0, 1.0, 0.5, 0.0, 1.0]
    names = [f"{i}" for i in range(7)]
    assert intervals_over_prompts(np.array([scores]), names, 3)[0] == pytest.approx(bootstrap_interval(scores, 3))


def test_repeated_pairs_of_a_prompt_do_not_narrow_the_interval():
    scores = np.array([1.0, 0.0, 1.0, 1.0, 0.5, 0.0, 1.0])
    names = [f"{i}" for i in range(7)]
    once = intervals_over_prompts(scores[None], names, 3)[0]
    often = intervals_over_prompts(np.repeat(scores, 20)[None], [n for n in names for _ in range(20)], 3)[0]
    assert often == pytest.approx(once)


def test_prompts_of_many_pairs_weigh_by_their_pairs():
    rights, names = np.array([[1.0] * 30 + [0.0]]), ["p"] * 30 + ["q"]
    low, high = intervals_over_prompts(rights, names, 0)[0]
    assert (low, high) == (0.0, 1.0)  # q alone, or p alone, in a quarter of the resamples each
    half = intervals_over_prompts(np.array([[1.0] * 3 + [0.0] * 3]), ["a", "b", "c", "d", "e", "f"], 0)[0]
    assert half == pytest.approx(bootstrap_interval([1.0] * 3 + [0.0] * 3, 0))


def test_equal_rates_get_wilsons_interval():
    """Equal losses get an interval of width 0."""
    rates, losses = intervals_over_prompts(np.array([[1.0, 1.0, 1.0], [2.5, 2.5, 2.5]]), ["a", "a", "b"], 0)
    assert rates == wilson_interval(2.0, 2)
    assert losses == pytest.approx((2.5, 2.5))


def test_log_loss_is_stable_far_out():
    assert log_loss(np.array([-800.0, 800.0, 0.0])).tolist() == pytest.approx([800.0, 0.0, math.log(2)])


def test_calibration_by_hand():
    logit = [math.log(c / (1 - c)) for c in (0.52, 0.53, 0.97, 0.97)]
    found = calibration(np.array([logit[0], -logit[1], logit[2], logit[3]]))
    first, last = found["bins"][0], found["bins"][-1]
    assert [b["pairs"] for b in found["bins"]] == [2, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    assert (first["from"], first["to"], last["from"], last["to"]) == pytest.approx((0.5, 0.55, 0.95, 1.0))
    assert (first["confidence"], first["accuracy"]) == pytest.approx((0.525, 0.5))
    assert (last["confidence"], last["accuracy"]) == pytest.approx((0.97, 1.0))
    assert found["error"] == pytest.approx((0.025 + 0.03) / 2)
    assert found["bins"][1]["confidence"] is None
    assert calibration(np.array([900.0]))["bins"][-1]["pairs"] == 1  # a confidence of exactly 1


@pytest.mark.statistical
def test_overconfidence_raises_the_calibration_error():
    generator = numbers(0)
    margins = generator.normal(0, 1.5, 20_000)
    signs = np.where(generator.random(20_000) < 1 / (1 + np.exp(-np.abs(margins))), 1, -1)
    true = np.abs(margins) * signs
    assert calibration(true)["error"] < 0.015
    assert calibration(true * 4)["error"] > 0.1


def test_sources_and_deciles_are_scored_separately():
    found = evaluate_by_part(PAIRS, True, 0)
    assert {name: part["pairs"] for name, part in found["by_source"].items()} == {"a": 2, "b": 2}
    assert found["by_source"]["a"] == evaluate_pairs(PAIRS[:2], True, 0)
    assert list(found["by_density_decile"]) == ["1", "10"]
    assert found["by_density_decile"]["10"] == evaluate_pairs(PAIRS[2:], True, 0)
    text = render_reward_report(found, "held-out")
    assert max(map(len, text.splitlines())) <= 100
    assert "longer one" in text and "decile 1 (rarest) " in text and "  a " in text
    low, high = found["accuracy_interval"]
    assert f"0.625 [{low:.2f}, {high:.2f}]" in text
    assert "+0.250" in text and f"error {found['calibration']['error']:.3f}" in text
    bare = render_reward_report(evaluate_by_part([ScoredPair("p", "a", 1.0, 2, 1)], None, 0), "x")
    assert "longer" not in bare and "decile" not in bare
