"""The reward model's report: hand-computed accuracies, intervals over prompts, calibration, the length-only rule."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from kat.records import PairsReport
from kat.reward.report import (
    ScoredPair,
    calibration,
    deciles,
    evaluate_by_part,
    evaluate_pairs,
    log_loss,
    longer_wins,
    points,
    render_reward_report,
)
from latentwire.stats.clusters import SampledClusters
from latentwire.stats.intervals import mean_interval, wilson_interval
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


def over_prompts(margins: list[float], lengths: list[int], prompts: list[str]) -> PairsReport:
    """Return the report of pairs whose chosen answers have these lengths; the rejected ones have length 0."""
    rows = zip(margins, lengths, prompts, strict=True)
    return evaluate_pairs([ScoredPair(prompt, "a", margin, length, 0) for margin, length, prompt in rows], True, 0)


def test_each_quantity_has_its_own_interval():
    """32 prompts of one pair each: Wilson's interval with variance m (1 - m) / 31, and Student's for even losses."""
    margins, lengths = [1.0, -1.0] * 16, [1, -1, -1, -1, 1, 1, 1, 1] * 4
    found = over_prompts(margins, lengths, [f"p{n}" for n in range(32)])
    t = float(stats.t.ppf(0.975, 31))
    assert found["accuracy_interval"] == pytest.approx(wilson_interval(4 / 8 * 31, 31, t))
    rule = found["length_only"]
    assert rule["accuracy_interval"] == pytest.approx(wilson_interval(5 / 8 * 31, 31, t))
    losses = np.array([math.log(1 + math.exp(-margin)) for margin in margins])
    half = t * losses.std(ddof=1) / math.sqrt(32)
    assert found["log_loss_interval"] == pytest.approx([losses.mean() - half, losses.mean() + half])
    low, high = rule["difference_interval"]
    assert low < rule["difference"] == -0.125 < high


def test_repeated_pairs_of_a_prompt_do_not_narrow_the_intervals():
    margins, lengths, prompts = [1.0, -2.0, 1.5, 1.0, 0.5, -0.2, 1.0] * 2, [1, -1] * 7, list("abcdefghijklmn")
    once = over_prompts(margins, lengths, prompts)
    often = over_prompts(*(list(np.repeat(each, 20)) for each in (margins, lengths, prompts)))
    for name in ("accuracy_interval", "log_loss_interval"):
        one, other = once[name], often[name]  # type: ignore[literal-required]
        assert other == pytest.approx(one, abs=0.02)
    assert once["length_only"]["accuracy_interval"] == pytest.approx(often["length_only"]["accuracy_interval"])
    one, other = (each["length_only"]["difference_interval"] for each in (once, often))
    assert other[1] - other[0] > 0.8 * (one[1] - one[0])


@pytest.mark.parametrize(("margin", "length"), [(1.0, 1), (-1.0, -1), (0.0, 0)])
def test_equal_points_have_a_symmetric_difference(margin, length):
    """Twenty prompts on which model and rule agree: 0 is not the lower end, nor certain."""
    found = over_prompts([margin] * 20, [length] * 20, [f"{n}" for n in range(20)])["length_only"]
    low, high = found["difference_interval"]
    assert found["difference"] == 0 and low == -high < -0.05


def test_a_constant_difference_is_not_certain():
    found = over_prompts([0.0] * 20, [1] * 20, [f"{n}" for n in range(20)])["length_only"]
    low, high = found["difference_interval"]
    assert found["difference"] == -0.5 and low < -0.5 < high < 0


def test_pairs_that_are_all_right_count_as_one_trial_a_prompt():
    """The loss is constant, which shows no spread."""
    found = over_prompts([1.0] * 60, [1] * 60, [f"{n // 6}" for n in range(60)])
    assert found["accuracy_interval"] == pytest.approx(wilson_interval(10, 10, float(stats.t.ppf(0.975, 9))))
    assert found["log_loss_interval"] == pytest.approx([found["log_loss"]] * 2)


@pytest.mark.statistical
def test_accuracies_near_1_cover_where_the_pairs_are_alike():
    """Thirty prompts of six equal pairs, right with probability .97: one trial a pair would cover .53."""
    generator, prompts, covered = numbers(0), SampledClusters(np.arange(30).repeat(6).tolist()), 0
    for _ in range(1000):
        low, high = mean_interval((generator.random(30) < 0.97).repeat(6), prompts)
        covered += low <= 0.97 <= high
    assert covered / 1000 > 0.91


def test_log_loss_is_stable_far_out():
    assert log_loss(np.array([-800.0, 800.0, 0.0])).tolist() == pytest.approx([800.0, 0.0, math.log(2)])


def test_calibration_by_hand():
    logit = [math.log(c / (1 - c)) for c in (0.52, 0.53, 0.97, 0.97)]
    found = calibration(np.array([logit[0], -logit[1], logit[2], logit[3]]), 0)
    first, last = found["bins"][0], found["bins"][-1]
    assert [b["pairs"] for b in found["bins"]] == [2, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    assert (first["from"], first["to"], last["from"], last["to"]) == pytest.approx((0.5, 0.55, 0.95, 1.0))
    assert (first["confidence"], first["accuracy"]) == pytest.approx((0.525, 0.5))
    assert (last["confidence"], last["accuracy"]) == pytest.approx((0.97, 1.0))
    assert found["error"] == pytest.approx((0.025 + 0.03) / 2)
    assert found["bins"][1]["confidence"] is None
    sure = calibration(np.array([900.0]), 0)
    assert sure["bins"][-1]["pairs"] == 1 and sure["error_if_calibrated"] == 0  # a confidence of exactly 1


def test_the_error_of_a_calibrated_model_by_hand():
    """Two pairs of confidence c in a bin are both right, one right or both wrong; a tie is half right."""
    c = 0.62
    expected = c * c * (1 - c) + 2 * c * (1 - c) * abs(0.5 - c) + (1 - c) ** 2 * c
    margin = math.log(c / (1 - c))
    for margins in ([margin, margin], [margin, -margin]):
        assert calibration(np.array(margins), 0)["error_if_calibrated"] == pytest.approx(expected, abs=0.02)
    assert calibration(np.array([margin, margin, 0.0, 0.0]), 0)["error_if_calibrated"] == pytest.approx(
        expected / 2, abs=0.01
    )


@pytest.mark.statistical
@pytest.mark.parametrize("count", [50, 200, 1000])
def test_calibrated_models_show_the_stated_error_on_average(count):
    generator, found = numbers(0), []
    for seed in range(60):
        margins = np.abs(generator.normal(0, 1.5, count))
        right = generator.random(count) < 1 / (1 + np.exp(-margins))
        found.append(calibration(np.where(right, margins, -margins), seed))
    shown, stated = (np.mean([each[name] for each in found]) for name in ("error", "error_if_calibrated"))
    assert shown == pytest.approx(stated, rel=0.12) and shown > 0.5 / math.sqrt(count)


@pytest.mark.statistical
def test_overconfidence_raises_the_calibration_error():
    generator = numbers(0)
    margins = generator.normal(0, 1.5, 20_000)
    signs = np.where(generator.random(20_000) < 1 / (1 + np.exp(-np.abs(margins))), 1, -1)
    true = np.abs(margins) * signs
    assert calibration(true, 0)["error"] < 0.015
    over = calibration(true * 4, 0)
    assert over["error"] > 0.1 > 0.015 > over["error_if_calibrated"]


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
    assert "+0.250" in text and f"error {found['calibration']['error']:.3f} (a perfectly calibrated model: " in text
    assert f"model: {found['calibration']['error_if_calibrated']:.3f} on average)" in text
    bare = render_reward_report(evaluate_by_part([ScoredPair("p", "a", 1.0, 2, 1)], None, 0), "x")
    assert "longer" not in bare and "decile" not in bare
