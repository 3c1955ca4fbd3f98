"""Diversity at equal reward and at equal KL, along the evaluations of each run. Main entry: `pairs_at_equal()`."""

from __future__ import annotations

import math

import numpy as np

from kat.collapse.records import Series, SeriesPoint
from kat.collapse.runs import BASELINE
from kat.collapse.table import ExperimentRuns, RowKey, SeedPairs, over_seeds, pair_up
from kat.diversity.kernel import Array

UNREACHED = 0.1  # share of the seeds in which an arm may miss the common level


def value_at(x: Array, y: Array, level: float) -> float:
    """Return y where x first reaches a level, by linear interpolation; NaN if x begins above it or never reaches it.

    Args:
        x: Reward or KL after each evaluation, (T,).
        y: Diversity after each evaluation, (T,).
        level: The level.
    """
    reached = np.flatnonzero(x >= level)
    if not len(reached) or x[0] > level:
        return math.nan
    after = int(reached[0])
    if after == 0:
        return float(y[0])
    share = (level - x[after - 1]) / (x[after] - x[after - 1])
    return float(y[after - 1] + share * (y[after] - y[after - 1]))


def common_level(runs: ExperimentRuns, measure: str) -> float:
    """Return the level that the baseline and all arms under test reach, in all but a tenth of the seeds.

    Args:
        runs: The runs.
        measure: "quality" or "kl".
    """
    lowest: dict[int, float] = {}
    for arm in (BASELINE, *runs.tested):
        for seed, run in runs.by_arm[arm].items():
            lowest[seed] = min(lowest.get(seed, math.inf), float(run.curve(measure, "all").max()))
    return float(np.quantile(list(lowest.values()), UNREACHED))


def pairs_at_equal(
    runs: ExperimentRuns, measure: str, key: RowKey, margin: float | None
) -> tuple[float, list[SeedPairs]]:
    """Return the common level of reward or KL, and the paired diversity of each arm there.

    A run whose evaluations do not contain the level is left out of this comparison, and counted.

    Args:
        runs: The runs.
        measure: "quality" or "kl".
        key: The deciding measure.
        margin: Largest difference that does not matter.
    """
    level = common_level(runs, measure)
    values = {
        arm: {seed: value_at(run.curve(measure, "all"), run.curve(*key), level) for seed, run in by_seed.items()}
        for arm, by_seed in runs.by_arm.items()
    }
    return level, [pair_up(arm, key, values[arm], values[BASELINE], margin) for arm in runs.arms[1:]]


def curve_of(runs: ExperimentRuns, arm: str, key: RowKey) -> Series:
    """Return a measure of an arm after each step: means over seeds with intervals."""
    by_seed = runs.by_arm[arm].values()
    points: list[SeriesPoint] = []
    for place, step in enumerate(next(iter(by_seed)).steps):
        found = over_seeds(run.curve(*key)[place] for run in by_seed)
        if found is not None:
            points.append({"x": float(step), "y": found["mean"], "interval": found["interval"]})
    return {"name": arm, "points": points}


def frontier_of(runs: ExperimentRuns, arm: str, across: str, key: RowKey) -> Series:
    """Return the path of an arm: reward or KL, and diversity, after each step; means over seeds."""
    by_seed = list(runs.by_arm[arm].values())
    xs = np.mean([run.curve(across, "all") for run in by_seed], axis=0)
    points: list[SeriesPoint] = []
    for place, (step, x) in enumerate(zip(by_seed[0].steps, xs, strict=True)):
        found = over_seeds(run.curve(*key)[place] for run in by_seed)
        if found is not None:
            point: SeriesPoint = {"x": float(x), "y": found["mean"], "interval": found["interval"]}
            points.append({**point, "label": f"step {step}"})
    return {"name": arm, "points": points}
