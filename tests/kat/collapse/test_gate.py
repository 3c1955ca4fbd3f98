"""Conditions of a verdict, the answers, and how often uniform differs from uniform."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kat.collapse.gate import (
    TABLES,
    false_positives,
    gate_checks,
    measure_false_positives,
    paired_tables,
    power_of_arms,
    prompt_share,
    swapped_tables,
)
from kat.collapse.measures import ENTROPY, QUALITY
from kat.collapse.records import GateCheck
from kat.collapse.result import answer_of, sentence_of
from kat.collapse.table import compare_rows
from latentwire.stats.seeds import detectable_over_seeds
from tests.helpers.collapse_runs import experiment_of, values_of
from tests.helpers.random import numbers

KEY = (ENTROPY, "all")
NOISE = np.array([0.03, -0.03, 0.01, -0.01, 0.02, -0.02])
LOW = 0.8 + NOISE
ARMS = {
    "uniform": LOW,
    "density": LOW + 0.3 + NOISE[::-1],
    "entropy": LOW + 0.5 - NOISE[::-1],
    "novelty": LOW + 0.6 + NOISE,
}


def judged(arms: dict, margin: float | None = None, min_collapse: float = 1 / 3):
    runs = experiment_of(arms)
    (primary,), _ = compare_rows(runs, [KEY], {KEY: margin} if margin else {})
    gate = gate_checks(runs, primary, None, min_collapse)
    found = next(one for one in primary["differences"] if one["arm"] == "density")
    answer = answer_of(found, 1, gate)
    return answer, sentence_of(answer, found, primary, gate, 1.2), gate


def test_an_arm_that_stays_diverse_reduces_collapse():
    answer, sentence, gate = judged(ARMS)
    assert answer == "reduces" and [check["passed"] for check in gate] == [True, True, True, None]
    assert sentence.startswith("Density-aware sampling reduces mode collapse: with density the entropy over valid ")
    assert "answers differs from uniform sampling by +0.300 [+0.2" in sentence
    assert "25% of what uniform sampling loses from the base model (6 seeds, 95% interval, p < .001" in sentence


def test_an_arm_that_collapses_more_increases_it():
    answer, sentence, _ = judged({**ARMS, "density": LOW - 0.3 + NOISE[::-1]})
    assert answer == "increases" and "increases mode collapse" in sentence and "by -0.300" in sentence


def test_a_small_difference_is_equivalent_only_with_a_margin():
    arms = {**ARMS, "density": LOW + 0.01 + NOISE[::-1] / 2}
    answer, sentence, _ = judged(arms, margin=0.12)
    assert answer == "equivalent" and "does not matter for mode collapse" in sentence and "margins of 0.120" in sentence
    answer, sentence, _ = judged(arms)
    assert answer == "not_shown" and "is not shown to change mode collapse" in sentence and "margin" not in sentence
    answer, sentence, _ = judged({**ARMS, "density": LOW + 9 * NOISE[::-1]}, margin=0.12)
    assert answer == "not_shown" and "nor is it shown to be smaller than the margin of 0.120" in sentence


def test_a_difference_below_the_margin_does_not_matter():
    """It is shown, and shown to be too small to matter."""
    assert judged({**ARMS, "density": LOW + 0.05 + NOISE[::-1] / 10}, margin=0.2)[0] == "equivalent"


@pytest.mark.parametrize(
    ("arms", "failed"),
    [
        ({**ARMS, "entropy": LOW + 2 * NOISE[::-1]}, "sees the entropy bonus"),
        ({**ARMS, "novelty": LOW - 0.6 + NOISE}, "sees the novelty reward"),
        ({arm: values for arm, values in ARMS.items() if arm != "novelty"}, "sees the novelty reward"),
        ({arm: np.minimum(values + 0.65, 2) for arm, values in ARMS.items()}, "uniform sampling collapses"),
    ],
)
def test_there_is_no_verdict_without_the_controls(arms, failed):
    """The metrics must see both controls, and uniform sampling must lose a third of its diversity."""
    answer, sentence, gate = judged(arms)
    assert answer == "no_verdict" and failed in [check["name"] for check in gate if check["passed"] is False]
    assert sentence.startswith("No verdict: the gate failed (") and failed in sentence


@pytest.mark.parametrize(("after", "passed"), [(0.9, True), (0.4, False)])
def test_a_policy_that_breaks_does_not_count_as_collapsed(after, passed):
    """The entropy falls by more than half in both; the quality rises from .5, or falls."""
    runs = experiment_of(ARMS)
    for run in runs.by_arm["uniform"].values():
        run.by_prompt[QUALITY] = np.outer([0.5, 0.6, after], np.ones(3))
    (primary,), _ = compare_rows(runs, [KEY], {})
    assert gate_checks(runs, primary, None, 1 / 3)[0]["passed"] is passed


def test_many_false_positives_fail_the_gate():
    runs = experiment_of(ARMS)
    (primary,), _ = compare_rows(runs, [KEY], {})
    found = {"share": 0.08, "interval": [0.07, 0.09], "tables": 2000, "pairs": 5, "measures": 9, "same_seed": True}
    checks: list[GateCheck] = gate_checks(runs, primary, found, 1 / 3)
    text = checks[-1]["text"]
    assert checks[-1]["passed"] is False
    assert text.startswith("8.0% [7.0%, 9.0%, by the resampling] of 2000 tables of 5 pairs")
    assert gate_checks(runs, primary, {**found, "share": 0.07}, 1 / 3)[-1]["passed"] is True


@pytest.mark.statistical
@pytest.mark.parametrize("skewed", [False, True])
def test_uniform_differs_from_uniform_in_at_most_7_percent(skewed):
    """30 correlated measures of 10 runs: in every data set at most 7% of the tables show a difference."""
    generator = numbers(int(skewed))
    shares = []
    for _ in range(8):
        both = 0.8 * generator.standard_normal((2, 1, 10)) + 0.6 * generator.standard_normal((2, 30, 10))
        one, other = np.exp(both / 2) if skewed else both
        shares.append(false_positives(paired_tables(one, generator), same_seed=False)["share"])
        shares.append(false_positives(swapped_tables(one - other, generator), same_seed=True)["share"])
    assert max(shares) <= 0.07 and np.mean(shares) > 0.005


def test_tables_without_holm_show_too_much():
    """Without the correction a third of the tables or more would have a p-value below .05."""
    generator = numbers()
    tables = paired_tables(generator.standard_normal((30, 12)), generator)
    alone = [false_positives(tables[:, [row]], same_seed=False)["share"] for row in range(30)]
    assert false_positives(tables, same_seed=False)["share"] < 0.08 < sum(alone) / 3


def test_tables_pair_each_run_once():
    values = np.array([[1.0, 2, 4, 8, 16, 32], [10, 20, 40, 80, 160, 320]])
    tables = paired_tables(values, np.random.default_rng(0))
    assert tables.shape == (TABLES, 2, 3)
    assert np.allclose(tables[:, 1], 10 * tables[:, 0])  # all measures of a table have the same pairs
    assert set(np.abs(tables[:, 0] % 2).sum(axis=1)) == {1.0}  # the odd value occurs once a table
    swapped = swapped_tables(values, np.random.default_rng(0))
    assert np.allclose(np.abs(swapped), values) and np.allclose(swapped[:, 1], 10 * swapped[:, 0])


def test_pairs_of_a_seed_are_preferred_and_few_runs_give_none():
    runs = experiment_of({"uniform": np.linspace(0.5, 1.5, 10)})
    assert measure_false_positives(runs, [KEY], 0)["same_seed"] is False
    again = {seed: values_of("uniform_again", seed, 0.9 + seed / 100) for seed in range(8)}
    found = measure_false_positives(replace(runs, again=again), [KEY], 0)
    assert found["same_seed"] is True and found["pairs"] == 8 and found["measures"] == 1
    assert measure_false_positives(experiment_of({"uniform": np.linspace(0.5, 1.5, 9)}), [KEY], 0) is None


def test_power_comes_from_the_spread_between_seeds():
    runs = experiment_of(ARMS)
    (primary,), _ = compare_rows(runs, [KEY], {})
    (found,) = power_of_arms(runs, primary, 0.05, 0)
    assert found["arm"] == "density" and found["sd"] == pytest.approx(NOISE.std(ddof=1))
    assert found["detectable"] == pytest.approx(detectable_over_seeds(found["sd"], 6, 0.05))
    assert found["detectable_corrected"] == found["detectable"]  # one arm under test
    assert found["seeds_needed"] is not None and found["seeds_needed"] > 2
    assert found["prompt_share"] == pytest.approx(0)  # all prompts of a seed have the same difference


def test_the_share_of_prompts_is_their_part_of_the_variance():
    """Three prompts with a spread of their own, and seeds that differ by nothing else."""
    generator = numbers()
    after = generator.standard_normal((200, 3))
    runs = experiment_of({"uniform": [1.0] * 200, "density": list(after)})
    (primary,), _ = compare_rows(runs, [KEY], {})
    share = prompt_share(runs, primary["differences"][0], primary, 0)
    assert share == pytest.approx(2 / 3, abs=0.2)  # a bootstrap over n prompts has (n - 1) / n of the variance
