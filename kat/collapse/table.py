"""Arms compared with the baseline, seed by seed. Main entries: `ExperimentRuns`, `compare_rows()`.

The unit of replication is the seed: every run gives one number for each measure, and an arm is compared with the
baseline of the same seed. Intervals, p-values and equivalence are those in `latentwire.stats.seeds`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from kat.collapse.measures import SIMILARITY, MeasureOf
from kat.collapse.records import Margin, MeasureRow, SeedDifference, SeedEquivalence, SeedMean
from kat.collapse.runs import BASELINE, CONTROLS
from kat.collapse.values import RunValues, equal_completions
from kat.diversity.kernel import Array
from latentwire.stats.comparison import holm
from latentwire.stats.intervals import Difference
from latentwire.stats.seeds import Equivalence, equivalence_over_seeds, mean_over_seeds

SIGNIFICANCE = 0.05
BASE = "base model"
RowKey = tuple[str, str]  # measure and group
BySeed = dict[int, float]


@dataclass(frozen=True)
class ExperimentRuns:
    """The finished runs of an experiment.

    Attributes:
        by_arm: Runs by arm and seed, without the runs of control seeds.
        again: Runs of the baseline with other random numbers of sampling, by seed.
        controls: Runs of the baseline with the control seeds, which give the margins.
        measures: All measures by name.
    """

    by_arm: dict[str, dict[int, RunValues]]
    again: dict[int, RunValues]
    controls: list[RunValues]
    measures: dict[str, MeasureOf]

    @property
    def arms(self) -> list[str]:
        """Return the arms: the baseline, the arms under test, then the positive controls."""
        tested = sorted(arm for arm in self.by_arm if arm not in (BASELINE, *CONTROLS))
        return [BASELINE, *tested, *(arm for arm in CONTROLS if arm in self.by_arm)]

    @property
    def tested(self) -> list[str]:
        """Return the arms under test."""
        return [arm for arm in self.arms if arm not in (BASELINE, *CONTROLS)]

    def any_run(self) -> RunValues:
        """Return the baseline's first run."""
        return next(iter(self.by_arm[BASELINE].values()))

    def has(self, key: RowKey) -> bool:
        """Return whether every run has a measure of a group. Similarity needs three seeds with the same prompts."""
        runs = [run for by_seed in self.by_arm.values() for run in by_seed.values()]
        if key[0] == SIMILARITY:
            enough = min(map(len, self.by_arm.values())) > 2
            return enough and len({frozenset(one.id for one in run.facts) for run in runs}) == 1
        return all(run.has(*key) for run in runs)

    def values(self, arm: str, key: RowKey, evaluation: int = -1) -> BySeed:
        """Return one number for each seed of an arm, after an evaluation (-1: the last one, 0: the base model)."""
        runs = self.by_arm[arm]
        if key[0] == SIMILARITY:
            return similarity_values(runs)
        return {seed: float(run.curve(*key)[evaluation]) for seed, run in sorted(runs.items())}


def similarity_values(runs: Mapping[int, RunValues]) -> BySeed:
    """Return a number for each of n >= 3 seeds, with the mean similarity of all pairs of seeds as their mean.

    A pair belongs to two seeds, so the means of each seed's pairs vary too little between seeds. Each seed has its
    jackknife pseudo-value instead: n times the mean minus n - 1 times the mean without the seed (Tukey 1958).
    """
    seeds = sorted(runs)
    n = len(seeds)
    pairs = {pair: equal_completions(runs[pair[0]], runs[pair[1]]) for pair in combinations(seeds, 2)}
    mean = sum(pairs.values()) / len(pairs)
    own = {seed: sum(value for pair, value in pairs.items() if seed in pair) / (n - 1) for seed in seeds}
    return {seed: (2 * (n - 1) * own[seed] - n * mean) / (n - 2) for seed in seeds}


@dataclass(frozen=True)
class SeedPairs:
    """Paired values of an arm and the baseline.

    Attributes:
        arm: The arm.
        key: The measure and the group.
        seeds: The n seeds.
        values: Differences from the baseline, (n,).
        left_out: Number of pairs without a value.
        margin: Largest difference that does not matter; None without one.
    """

    arm: str
    key: RowKey
    seeds: tuple[int, ...]
    values: Array
    left_out: int
    margin: float | None


def pair_up(arm: str, key: RowKey, own: BySeed, baseline: BySeed, margin: float | None) -> SeedPairs:
    """Return the differences of an arm from the baseline for the seeds that have both. A value may be NaN: left out."""
    both = [seed for seed in own if seed in baseline]
    known = [seed for seed in both if not math.isnan(own[seed] - baseline[seed])]
    values = np.array([own[seed] - baseline[seed] for seed in known])
    return SeedPairs(arm, key, tuple(known), values, len(both) - len(known), margin)


def compare_pairs(pairs: Sequence[SeedPairs]) -> list[SeedDifference]:
    """Return the differences of a family, with Holm's correction over its arms under test.

    Pairs with fewer than two seeds are left out. A positive control is not a hypothesis, so it has no corrected
    p-value and does not count in the family.

    Args:
        pairs: All comparisons of the family.
    """
    usable = [one for one in pairs if len(one.seeds) > 1]
    found = [mean_over_seeds(one.values[None])[0] for one in usable]
    equal = [None if one.margin is None else equivalence_over_seeds(one.values[None], [one.margin])[0]
             for one in usable]  # fmt: skip
    p_holm = _corrected(usable, [one.p_value for one in found])
    p_equal = _corrected(usable, [None if one is None else one.p_value for one in equal])
    return [
        _record(one, difference, p, _equivalence(equivalence, corrected))
        for one, difference, p, equivalence, corrected in zip(usable, found, p_holm, equal, p_equal, strict=True)
    ]


def _corrected(pairs: Sequence[SeedPairs], p_values: Sequence[float | None]) -> list[float | None]:
    """Return Holm's p-values of the arms under test; None for positive controls and without a p-value."""
    rows = [row for row, (one, p) in enumerate(zip(pairs, p_values, strict=True))
            if one.arm not in CONTROLS and p is not None]  # fmt: skip
    found: list[float | None] = [None] * len(pairs)
    for row, p in zip(rows, holm(np.array([p_values[row] for row in rows], dtype=np.float64)), strict=True):
        found[row] = float(p)
    return found


def _equivalence(found: Equivalence | None, p_holm: float | None) -> SeedEquivalence | None:
    if found is None:
        return None
    p = found.p_value if p_holm is None else p_holm
    return {"margin": found.margin, "interval": list(found.interval), "p_value": found.p_value, "p_holm": p}


def _record(
    pairs: SeedPairs, found: Difference, p_holm: float | None, equivalence: SeedEquivalence | None
) -> SeedDifference:
    return {
        "arm": pairs.arm,
        "difference": found.difference,
        "interval": list(found.interval),
        "seeds": list(pairs.seeds),
        "values": pairs.values.tolist(),
        "left_out": pairs.left_out,
        "p_value": found.p_value,
        "p_holm": p_holm,
        "equivalence": equivalence,
    }


def over_seeds(values: Iterable[float]) -> SeedMean | None:
    """Return the mean of the known values with its 95% interval; None if no value is known."""
    known = np.array([value for value in values if not math.isnan(value)])
    if not len(known):
        return None
    found = mean_over_seeds(known[None])[0] if len(known) > 1 else None
    return {
        "mean": float(known.mean()),
        "interval": None if found is None else list(found.interval),
        "seeds": len(known),
    }


def compare_rows(
    runs: ExperimentRuns, keys: Sequence[RowKey], margins: Mapping[RowKey, float], more: Sequence[SeedPairs] = ()
) -> tuple[list[MeasureRow], list[SeedDifference]]:
    """Return measures after training with their differences from the baseline, as one family of tests.

    Args:
        runs: The runs.
        keys: Measures and groups.
        margins: Largest difference that does not matter, for the keys that have one.
        more: Further comparisons of the same family.

    Returns:
        A row for each key, and the differences of `more`.
    """
    arms = runs.arms
    values = {(arm, key): runs.values(arm, key) for arm in arms for key in keys}
    pairs = [
        pair_up(arm, key, values[arm, key], values[BASELINE, key], margins.get(key)) for key in keys for arm in arms[1:]
    ]
    usable = [one for one in (*pairs, *more) if len(one.seeds) > 1]
    tested = compare_pairs(usable)
    of_key: dict[RowKey, list[SeedDifference]] = {key: [] for key in keys}
    others: list[SeedDifference] = []
    further = set(map(id, more))
    for one, difference in zip(usable, tested, strict=True):
        (others if id(one) in further else of_key[one.key]).append(difference)
    return [_row(runs, key, {arm: values[arm, key] for arm in arms}, of_key[key]) for key in keys], others


def _row(
    runs: ExperimentRuns, key: RowKey, of_arm: Mapping[str, BySeed], differences: list[SeedDifference]
) -> MeasureRow:
    measure = runs.measures[key[0]]
    base = None if key[0] == SIMILARITY else over_seeds(runs.values(BASELINE, key, 0).values())
    means = {arm: over_seeds(by_seed.values()) for arm, by_seed in of_arm.items()}
    return {
        "measure": key[0],
        "group": key[1],
        "label": measure.label + ("" if key[1] == "all" else f", {key[1]} topics"),
        "direction": measure.direction,
        "base": base,
        "arms": {arm: mean for arm, mean in means.items() if mean is not None},
        "differences": differences,
        "sees_controls": sees_controls(differences, measure.direction) if measure.direction else None,
    }


def sees_controls(differences: Sequence[SeedDifference], direction: int) -> bool:
    """Return whether a measure shows both positive controls as more diverse, with Holm's correction over the two."""
    found = [one for one in differences if one["arm"] in CONTROLS]
    if len(found) < len(CONTROLS):
        return False
    p_values = holm(np.array([one["p_value"] for one in found]))
    return all(p < SIGNIFICANCE and one["difference"] * direction > 0 for p, one in zip(p_values, found, strict=True))


def find_margins(runs: ExperimentRuns, keys: Iterable[RowKey], share: float) -> list[Margin]:
    """Return a share of what the control runs lose from the base model, for each measure in which they lose.

    The control runs have other seeds than the compared ones, so no margin depends on what it judges.

    Args:
        runs: The runs.
        keys: Measures and groups.
        share: Share of the loss.
    """
    found: list[Margin] = []
    for key in keys:
        direction = runs.measures[key[0]].direction
        if not direction or key[0] == SIMILARITY or not all(run.has(*key) for run in runs.controls):
            continue
        curves = [run.curve(*key) for run in runs.controls]
        lost = float(np.mean([direction * (curve[0] - curve[-1]) for curve in curves])) if curves else math.nan
        if lost > 0:
            found.append({"measure": key[0], "group": key[1], "lost": lost, "margin": share * lost})
    return found
