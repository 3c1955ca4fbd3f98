"""Arms against the baseline, seed by seed: signs, pairing, families, margins, equal reward, exposure."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from kat.collapse.exposure import slopes_of, topic_rows
from kat.collapse.frontier import common_level, pairs_at_equal, value_at
from kat.collapse.measures import ENTROPY, KL, QUALITY, SIMILARITY
from kat.collapse.table import compare_pairs, compare_rows, find_margins, over_seeds, pair_up, similarity_values
from kat.collapse.values import equal_completions
from tests.helpers.collapse_runs import experiment_of, values_of
from tests.helpers.random import numbers

KEY = (ENTROPY, "all")
LEVELS = np.array([0.2, 0.6, 1.0, 1.4, 1.8])  # seeds differ far more than arms


def test_a_difference_is_the_arm_minus_the_baseline_of_its_seed():
    """Paired by seed, a small difference has a small interval, although the seeds differ far more."""
    own = LEVELS + np.array([0.10, 0.12, 0.11, 0.12, 0.10])
    runs = experiment_of({"uniform": LEVELS, "density": own[::-1][::-1], "shuffled": LEVELS - 0.3})
    (row,), _ = compare_rows(runs, [KEY], {})
    found = {one["arm"]: one for one in row["differences"]}
    expected = stats.ttest_1samp(own - LEVELS, 0).confidence_interval()
    assert found["density"]["difference"] == pytest.approx(0.11)
    assert found["density"]["interval"] == pytest.approx(list(expected), abs=0.002)
    assert found["shuffled"]["difference"] == pytest.approx(-0.3)
    assert found["density"]["seeds"] == [0, 1, 2, 3, 4]
    assert row["base"] == {"mean": 2.0, "interval": [2.0, 2.0], "seeds": 5}
    assert row["arms"]["density"]["mean"] == pytest.approx(own.mean())


def test_seeds_are_paired_by_number_and_not_by_place():
    runs = experiment_of({"uniform": LEVELS, "density": LEVELS + 0.1})
    shuffled = dict(reversed(runs.by_arm["density"].items()))
    del shuffled[2]
    (row,), _ = compare_rows(replace(runs, by_arm={**runs.by_arm, "density": shuffled}), [KEY], {})
    (found,) = row["differences"]
    assert found["seeds"] == [0, 1, 3, 4] and found["values"] == pytest.approx([0.1] * 4)


def test_the_seed_is_the_unit_and_not_the_prompt():
    """Every prompt of a seed differs by the same amount: resampling prompts would find hardly any spread."""
    shifts = np.array([-0.5, -0.25, 0.0, 0.25, 0.5])
    runs = experiment_of({"uniform": [1.0] * 5, "density": 1.0 + shifts})
    (row,), _ = compare_rows(runs, [KEY], {})
    low, high = row["differences"][0]["interval"]
    half = stats.t.ppf(0.975, 4) * shifts.std(ddof=1) / np.sqrt(5)
    assert (low, high) == pytest.approx((-half, half))


@pytest.mark.statistical
def test_an_arm_without_an_effect_is_rarely_shown():
    """With noise between seeds and between prompts, 5% of the experiments or fewer show a difference."""
    generator = numbers()
    seeds, experiments = 8, 3000
    baseline, own = (generator.standard_normal((experiments, seeds, 3)) * 0.5 for _ in range(2))  # prompts
    common = generator.standard_normal((experiments, seeds, 1))  # of the seed, shared by its arms
    values = (own + common - baseline - common).mean(axis=2) + 0.2 * generator.standard_normal((experiments, seeds))
    pairs = [pair_up("density", KEY, dict(enumerate(row)), dict.fromkeys(range(seeds), 0.0), None) for row in values]
    shown = [compare_pairs([pair])[0]["p_holm"] < 0.05 for pair in pairs]
    assert 0.03 < np.mean(shown) < 0.065


def test_holm_covers_the_arms_under_test_and_no_control():
    noise = np.array([0.02, -0.01, 0.0, 0.01, -0.02])
    runs = experiment_of({"uniform": LEVELS, "density": LEVELS + 0.03 + noise, "shuffled": LEVELS + 0.02 + noise[::-1],
                          "oracle": LEVELS + noise, "entropy": LEVELS + 0.03 - noise})  # fmt: skip
    (row,), _ = compare_rows(runs, [KEY], {KEY: 0.05})
    found = {one["arm"]: one for one in row["differences"]}
    order = sorted(("density", "shuffled", "oracle"), key=lambda arm: found[arm]["p_value"])
    expected = np.maximum.accumulate([min(1, (3 - n) * found[arm]["p_value"]) for n, arm in enumerate(order)])
    assert [found[arm]["p_holm"] for arm in order] == pytest.approx(expected)
    assert found["entropy"]["p_holm"] is None
    p = [found[arm]["equivalence"]["p_value"] for arm in order]
    assert min(found[arm]["equivalence"]["p_holm"] for arm in order) == pytest.approx(3 * min(p))
    assert found["density"]["equivalence"]["margin"] == 0.05


def test_a_family_has_all_its_rows_and_further_comparisons():
    noise = np.array([0.02, -0.01, 0.0, 0.01, -0.02])
    runs = experiment_of({"uniform": LEVELS, "density": LEVELS + 0.05 + noise})
    _, pairs = pairs_at_equal(runs, QUALITY, KEY, None)
    rows, others = compare_rows(runs, [KEY, (ENTROPY, "rare")], {}, pairs)
    smallest = min(one["p_value"] for row in rows for one in row["differences"])
    smallest = min(smallest, others[0]["p_value"])
    assert min(rows[0]["differences"][0]["p_holm"], others[0]["p_holm"]) == pytest.approx(3 * smallest)


def test_values_that_are_unknown_are_left_out_and_counted():
    found = pair_up("density", KEY, {0: 1.0, 1: np.nan, 2: 3.0, 7: 5.0}, {0: 0.5, 1: 0.5, 2: 1.0}, None)
    assert found.seeds == (0, 2) and found.values.tolist() == [0.5, 2.0] and found.left_out == 1
    assert compare_pairs([pair_up("density", KEY, {0: 1.0}, {0: 0.0}, None)]) == []  # one seed has no interval
    assert over_seeds([1.0, np.nan]) == {"mean": 1.0, "interval": None, "seeds": 1}
    assert over_seeds([np.nan]) is None


def test_margins_come_from_the_control_runs_alone():
    keys = [KEY, (QUALITY, "all"), (SIMILARITY, "all")]
    for uniform in ([1.0, 1.0], [0.1, 0.3]):
        runs = experiment_of({"uniform": uniform, "density": [1.0, 1.2]}, controls=[1.0, 1.5])
        found = find_margins(runs, keys, 0.1)
        assert found == [{"measure": ENTROPY, "group": "all", "lost": 0.75, "margin": pytest.approx(0.075)}]
    assert find_margins(experiment_of({"uniform": [1.0, 1.0]}), keys, 0.1) == []
    assert find_margins(experiment_of({"uniform": [1.0]}, controls=[2.5]), keys, 0.1) == []  # they lose nothing


def test_pseudo_values_of_seeds_are_those_of_the_jackknife():
    runs = {seed: values_of("uniform", seed, 1.0) for seed in range(4)}
    for seed, run in runs.items():
        for shown in run.shown[1]:
            shown[:] = [{"text": "a", "count": 1 + seed, "good": True}, {"text": "b", "count": 4, "good": True}]

    def mean(seeds: list[int]) -> float:
        return float(np.mean([equal_completions(runs[i], runs[k]) for i, k in combinations(seeds, 2)]))

    found = similarity_values(runs)
    for seed in runs:
        rest = [other for other in runs if other != seed]
        assert found[seed] == pytest.approx(4 * mean(list(runs)) - 3 * mean(rest))
    assert np.mean(list(found.values())) == pytest.approx(mean(list(runs)))


def test_diversity_is_read_where_reward_first_reaches_a_level():
    x, y = np.array([0.2, 0.4, 0.8, 0.6]), np.array([2.0, 1.5, 1.0, 0.9])
    assert value_at(x, y, 0.5) == pytest.approx(1.5 - 0.5 / 4)
    assert value_at(x, y, 0.2) == 2.0 and value_at(x, y, 0.8) == 1.0
    assert np.isnan(value_at(x, y, 0.9)) and np.isnan(value_at(x, y, 0.1))


def test_runs_without_the_common_reward_are_left_out_of_it():
    runs = experiment_of({"uniform": [1.0] * 10, "density": [1.2] * 10})
    runs.by_arm["density"][3] = values_of("density", 3, 1.2, quality=(0.5, 0.55, 0.6))
    runs.by_arm["uniform"][4] = values_of("uniform", 4, 1.0, quality=(0.5, 0.8, 1.0))
    assert common_level(runs, QUALITY) == pytest.approx(0.6 + 0.9 * 0.3) and common_level(runs, KL) == 2.0
    level, (pairs,) = pairs_at_equal(runs, QUALITY, KEY, None)
    assert pairs.left_out == 1 and 3 not in pairs.seeds and len(pairs.seeds) == 9
    own = 1.6 - 0.85 * 0.4  # density reaches .87 at .85 of the way from .7 to .9
    assert pairs.values[0] == pytest.approx(own - (1.5 - 0.85 * 0.5))
    assert pairs.values[pairs.seeds.index(4)] == pytest.approx(own - (1.5 - 0.35 * 0.5))  # uniform from .8 to 1
    assert level == pytest.approx(0.87)


def test_the_slope_is_that_of_diversity_on_log_exposure():
    """Each topic has .3 more nats for twice the draws, and .1 in any case."""
    arms: dict[str, dict] = {"uniform": {}, "density": {}}
    exposure = {0: 0.25, 1: 0.3, 2: 0.45}
    for seed in range(3):
        arms["uniform"][seed] = values_of("uniform", seed, [1.0, 0.8, 0.6])
        ratios = [np.log2(exposure[topic] / arms["uniform"][seed].exposure[topic]) for topic in range(3)]
        after = np.array([1.0, 0.8, 0.6]) + 0.1 + (0.3 + seed / 10) * np.array(ratios)
        arms["density"][seed] = replace(values_of("density", seed, after), exposure=exposure)
    runs = replace(experiment_of({"uniform": [1.0]}), by_arm=arms)
    (slope,) = slopes_of(runs, KEY)
    assert slope["arm"] == "density" and slope["slope"] == pytest.approx(0.4) and slope["seeds"] == 3
    rows = topic_rows(runs, KEY)
    assert [(row["topic"], row["size"], row["rare"]) for row in rows] == [(0, 10, False), (1, 9, False), (2, 8, True)]
    assert rows[2]["exposure"] == {"uniform": pytest.approx(0.2), "density": pytest.approx(0.45)}
    assert rows[0]["diversity"]["base model"] == 2 and rows[1]["diversity"]["uniform"] == pytest.approx(0.8)
