"""Whether the experiment can give a verdict: collapse, positive controls, false positives. Main entry: `gate_checks()`.

Also what it detects: `power_of_arms()`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kat.collapse.measures import QUALITY, SIMILARITY
from kat.collapse.records import FalsePositives, GateCheck, MeasureRow, SeedDifference, SeedPower
from kat.collapse.runs import AGAIN, BASELINE, CONTROLS
from kat.collapse.table import SIGNIFICANCE, ExperimentRuns, RowKey
from kat.collapse.values import RunValues
from kat.diversity.kernel import Array
from kat.diversity.report import p_text
from latentwire.stats.comparison import holm
from latentwire.stats.intervals import resampled_means, wilson_interval
from latentwire.stats.power import ALPHA
from latentwire.stats.seeds import detectable_over_seeds, mean_over_seeds, seeds_needed, two_sided_p

FEWEST_RUNS, FEWEST_PAIRS = 10, 8  # of the baseline, and of pairs with uniform_again, for enough different tables
TABLES = 2000  # resampled tables of uniform against uniform
MOST_FALSE = 0.07  # largest share of tables with a difference
MOST_SEEDS = 1000  # the largest number of seeds that the page advises
WORDS = {"entropy": "the entropy bonus", "novelty": "the novelty reward"}


def gate_checks(
    runs: ExperimentRuns, primary: MeasureRow, positives: FalsePositives | None, min_collapse: float
) -> list[GateCheck]:
    """Return the conditions of the verdict.

    Args:
        runs: The runs.
        primary: The deciding measure.
        positives: Tables of uniform against uniform.
        min_collapse: Smallest share of its diversity that the baseline must lose.
    """
    checks = [_collapse(runs, primary, min_collapse), *_controls(primary)]
    if positives is None:
        text = f"not measured: it needs {FEWEST_RUNS} runs of {BASELINE}, or {FEWEST_PAIRS} of the arm {AGAIN}"
        return [*checks, {"name": "uniform against uniform", "passed": None, "text": text}]
    low, high = positives["interval"]
    text = (
        f"{positives['share']:.1%} [{low:.1%}, {high:.1%}, by the resampling] of {positives['tables']} tables of "
        f"{positives['pairs']} pairs and {positives['measures']} measures have a corrected p below .05; "
        f"at most {MOST_FALSE:.0%} may"
    )
    return [*checks, {"name": "uniform against uniform", "passed": positives["share"] <= MOST_FALSE, "text": text}]


def _collapse(runs: ExperimentRuns, primary: MeasureRow, min_collapse: float) -> GateCheck:
    key, sign = (primary["measure"], primary["group"]), primary["direction"]
    before, after = (np.array(list(runs.values(BASELINE, key, place).values())) for place in (0, -1))
    lost = mean_over_seeds((sign * (before - after))[None])[0]
    share = lost.difference / abs(float(before.mean()))
    quality = [float(run.curve(QUALITY, "all")[-1] - run.curve(QUALITY, "all")[0])
               for run in runs.by_arm[BASELINE].values()]  # fmt: skip
    each = int((sign * (before - after) / np.abs(before) >= min_collapse).sum())
    low, high = lost.interval
    text = (
        f"from the base model to the end of uniform sampling the {primary['label']} falls by {lost.difference:.3f} "
        f"[{low:.3f}, {high:.3f}], {share:.0%} of it; by {min_collapse:.0%} or more in {each} of {len(before)} seeds; "
        f"quality rises by {np.mean(quality):.3f}"
    )
    passed = bool(
        lost.difference > 0 and lost.p_value < SIGNIFICANCE and share >= min_collapse and np.mean(quality) > 0
    )
    return {"name": "uniform sampling collapses", "passed": passed, "text": text}


def _controls(primary: MeasureRow) -> list[GateCheck]:
    found = {one["arm"]: one for one in primary["differences"] if one["arm"] in CONTROLS}
    corrected = dict(zip(found, holm(np.array([one["p_value"] for one in found.values()])), strict=True))
    checks: list[GateCheck] = []
    for arm in CONTROLS:
        name = f"sees {WORDS[arm]}"
        if arm not in found:
            checks.append({"name": name, "passed": False, "text": f"fewer than 2 finished runs of the arm {arm}"})
            continue
        one, p = found[arm], corrected[arm]
        low, high = one["interval"]
        text = f"{one['difference']:+.3f} [{low:+.3f}, {high:+.3f}] against uniform, p (Holm, 2 controls) {p_text(p)}"
        passed = bool(p < SIGNIFICANCE and one["difference"] * primary["direction"] > 0)
        checks.append({"name": name, "passed": passed, "text": text})
    return checks


def measure_false_positives(runs: ExperimentRuns, keys: Sequence[RowKey], seed: int) -> FalsePositives | None:
    """Return how often uniform differs from uniform, in tables of resampled pairs of runs.

    With FEWEST_PAIRS or more runs of the arm uniform_again, a pair has the same seed and other random numbers of
    sampling. A table swaps the two runs of each pair at random. Otherwise a table pairs the baseline's runs at
    random, two seeds in each pair. Fewer runs give None: they have too few different tables.

    Args:
        runs: The runs.
        keys: Measures and groups of the tables.
        seed: Seed of the resampling.
    """
    usable = [key for key in keys if key[0] != SIMILARITY]
    baseline = runs.by_arm[BASELINE]
    generator = np.random.default_rng(seed)
    shared = sorted(runs.again.keys() & baseline.keys())
    if len(shared) >= FEWEST_PAIRS:
        values = _final([baseline[s] for s in shared], usable) - _final([runs.again[s] for s in shared], usable)
        return false_positives(swapped_tables(_complete(values), generator), same_seed=True)
    if len(baseline) < FEWEST_RUNS:
        return None
    values = _complete(_final(list(baseline.values()), usable))
    return false_positives(paired_tables(values, generator), same_seed=False)


def _final(runs: Sequence[RunValues], keys: Sequence[RowKey]) -> Array:
    """Return the measures after training, (S, n)."""
    return np.array([[run.curve(*key)[-1] for run in runs] for key in keys])


def _complete(values: Array) -> Array:
    """Return the rows without NaN."""
    found: Array = values[~np.isnan(values).any(axis=1)]
    return found


def swapped_tables(differences: Array, generator: np.random.Generator) -> Array:
    """Return tables with the runs of each pair swapped at random: (S, n) -> (TABLES, S, n)."""
    signs = generator.choice([-1.0, 1.0], size=(TABLES, 1, differences.shape[1]))
    found: Array = signs * differences
    return found


def paired_tables(values: Array, generator: np.random.Generator) -> Array:
    """Return tables of differences between runs that are paired at random: (S, n) -> (TABLES, S, n // 2)."""
    n = values.shape[1]
    order = generator.permuted(np.tile(np.arange(n), (TABLES, 1)), axis=1)[:, : n // 2 * 2]  # (TABLES, 2 * pairs)
    shuffled = values[:, order].swapaxes(0, 1)  # (TABLES, S, 2 * pairs)
    found: Array = shuffled[..., ::2] - shuffled[..., 1::2]
    return found


def false_positives(tables: Array, same_seed: bool) -> FalsePositives:
    """Return the share of tables in which Holm's correction leaves a p-value below .05.

    Args:
        tables: Differences of S measures in n pairs of runs, (tables, S, n).
        same_seed: Whether the runs of a pair have the same seed.
    """
    count, measures, pairs = tables.shape
    smallest = two_sided_p(tables).min(axis=1)  # Holm's first step: it multiplies the smallest p-value by S
    hits = int((smallest * measures < SIGNIFICANCE).sum())
    return {
        "share": hits / count,
        "interval": list(wilson_interval(hits, count)),
        "tables": count,
        "pairs": pairs,
        "measures": measures,
        "same_seed": same_seed,
    }


def power_of_arms(runs: ExperimentRuns, primary: MeasureRow, target: float, seed: int) -> list[SeedPower]:
    """Return what the experiment detects in the deciding measure, for each arm under test whose differences vary.

    Args:
        runs: The runs.
        primary: The deciding measure.
        target: Difference for which the number of seeds is given, above 0.
        seed: Seed of the resampling of prompts.
    """
    tested = [one for one in primary["differences"] if one["arm"] in runs.tested]
    found: list[SeedPower] = []
    for one in tested:
        n, sd = len(one["seeds"]), float(np.std(one["values"], ddof=1))
        if sd == 0:
            continue
        corrected = ALPHA / len(tested)
        found.append(
            {
                "arm": one["arm"],
                "seeds": n,
                "sd": sd,
                "tests": len(tested),
                "detectable": detectable_over_seeds(sd, n, ALPHA),
                "detectable_corrected": detectable_over_seeds(sd, n, corrected),
                "target": target,
                "seeds_needed": seeds_needed(target, sd, n, ALPHA, MOST_SEEDS),
                "seeds_needed_corrected": seeds_needed(target, sd, n, corrected, MOST_SEEDS),
                "most_seeds": MOST_SEEDS,
                "prompt_share": prompt_share(runs, one, primary, seed),
            }
        )
    return found


def prompt_share(runs: ExperimentRuns, difference: SeedDifference, primary: MeasureRow, seed: int) -> float | None:
    """Return the share of the variance between seeds that the choice of prompts explains, at most 1.

    Prompts are resampled within each seed, the same ones for both runs.

    Args:
        runs: The runs.
        difference: An arm's difference from the baseline.
        primary: The deciding measure.
        seed: Seed of the resampling.
    """
    variances = []
    for one in difference["seeds"]:
        pair = [runs.by_arm[arm][one] for arm in (difference["arm"], BASELINE)]
        if pair[0].facts != pair[1].facts or primary["measure"] not in pair[0].by_prompt:
            return None
        members = pair[0].groups[primary["group"]]
        own, base = (run.by_prompt[primary["measure"]][-1, members] for run in pair)
        known = own - base
        means = resampled_means(known[~np.isnan(known)][None], seed)
        variances.append(float(means.var()))
    between = float(np.var(difference["values"], ddof=1))
    return min(1.0, float(np.mean(variances)) / between)
