"""Comparisons of results with their baseline, over all sources of a sweep. Main entries: `differences()`, `power()`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from latentwire.analysis.controls import LARGEST, SEED, Evidence
from latentwire.analysis.records import Across, Power
from latentwire.records import ScoredResult
from latentwire.stats.clusters import SampledClusters
from latentwire.stats.comparison import (
    ROUNDING,
    Comparison,
    PairedDifference,
    corrected,
    holm,
    paired_differences,
    partial_conjunction,
    recovered_shares,
)
from latentwire.stats.intervals import Interval, Scores
from latentwire.stats.power import ALPHA, POWER, POWER_FORMULA, detectable_difference, needed_changes, samples_needed


@dataclass(frozen=True)
class Spread:
    """How the paired differences of a result from the baseline vary."""

    sd: float  # standard deviation, with the design effect of the passages
    change: float  # mean size of the differences that are not 0
    design_effect: float
    count: int  # number of examples
    passages: int

    def detectable(self, alpha: float) -> float | None:
        """Return the smallest difference that a test at the level alpha detects with probability POWER."""
        return _detectable(self.sd, self.change, self.count, self.passages, alpha)


def _detectable(sd: float, change: float, count: int, passages: int, alpha: float) -> float | None:
    """Return the smallest detectable difference, or None if no difference of scores is detectable.

    Passages are flipped as a whole, so fewer than `needed_changes` of them show nothing.
    """
    found = detectable_difference(sd, count, alpha, change)
    return found if passages >= needed_changes(alpha) and found <= LARGEST else None


def differences(names: Sequence[str], evidence: Evidence, comparisons: int) -> dict[str, PairedDifference]:
    """Compare results with the baseline on their own examples.

    Args:
        names: Names of the results to compare.
        evidence: Baseline and scores of the source.
        comparisons: Number of comparisons of the sweep.

    Returns:
        The difference of each result whose examples the baseline answered too, by its name.
    """
    if evidence.baseline is None:
        return {}
    found: dict[str, PairedDifference] = {}
    for shared in evidence.shared(names, evidence.baseline["name"]):
        (reference,) = shared.references
        own = paired_differences(shared.scores, reference, SEED, shared.clusters, LARGEST, comparisons)
        found |= zip(shared.names, own, strict=True)
    return found


def corrected_over_sources(by_group: Mapping[str, dict[str, PairedDifference]]) -> dict[str, Comparison]:
    """Return the comparisons of all sources, by name of the result, corrected as one family by Holm's method."""
    every = {name: own for found in by_group.values() for name, own in found.items()}
    return dict(zip(every, corrected(list(every.values())), strict=True))


def across_sources(by_group: Mapping[str, dict[str, PairedDifference]], contenders: set[str]) -> Across | None:
    """Return how many sources have a repair that is better than their baseline, or None for fewer than two sources.

    A source's p-value is the smallest one of its contenders that are above the baseline, after Holm's correction
    within the source. At level ALPHA at least K sources have a repair that helps, for the K of the partial conjunction.

    Args:
        by_group: Differences from the baseline of each source, by name of the result.
        contenders: Names of results apart from controls.
    """
    smallest = []
    for found in by_group.values():
        own = [difference for name, difference in found.items() if name in contenders and difference.testable]
        if found:
            p_values = holm(np.array([difference.p_value for difference in own]))
            above = [p for p, difference in zip(p_values, own, strict=True) if difference.difference > 0]
            smallest.append(float(min(above, default=1.0)))
    if len(smallest) < 2:
        return None
    return {"sources": len(smallest), "helped": partial_conjunction(np.array(smallest), ALPHA), "alpha": ALPHA}


def spreads(names: Iterable[str], evidence: Evidence) -> dict[str, Spread]:
    """Return the spread of the paired differences of each result that differs from the baseline."""
    if evidence.baseline is None:
        return {}
    found = {}
    for shared in evidence.shared(list(names), evidence.baseline["name"]):
        (reference,) = shared.references
        for name, values in zip(shared.names, shared.scores - reference, strict=True):
            if (spread := _spread(values, shared.clusters)) is not None:
                found[name] = spread
    return found


def _spread(values: Scores, clusters: SampledClusters) -> Spread | None:
    """Return the spread of paired differences, (N,); None if they have no variance."""
    changed = np.abs(values) > ROUNDING
    if clusters.count < 2 or np.ptp(values) <= ROUNDING:
        return None
    variance = float(clusters.variances(values[None])[0])
    effect = float(clusters.design_effects(values[None])[0])
    count = len(values)
    return Spread((variance * count) ** 0.5, float(np.abs(values[changed]).mean()), effect, count, clusters.count)


def power(
    found: Sequence[Spread], comparisons: int, baseline: ScoredResult | None, target_difference: float
) -> Power | None:
    """Return which differences the examples of a source can show, or None if no contender differs from the baseline.

    Args:
        found: Spreads of the contenders that a test can tell from the baseline.
        comparisons: Number of comparisons of the sweep, over which the levels are corrected.
        baseline: The baseline.
        target_difference: Difference for which to compute the needed number of examples.
    """
    if baseline is None or not found:
        return None
    sd, change = (float(np.median([getattr(one, field) for one in found])) for field in ("sd", "change"))
    count, passages = max((one.count, one.passages) for one in found)
    level = ALPHA / max(1, comparisons)
    return {
        "num_samples": count,
        "available": baseline.get("available"),
        "comparisons": comparisons,
        "power": POWER,
        "alpha": ALPHA,
        "alpha_corrected": level,
        "std": sd,
        "change": change,
        "detectable": _detectable(sd, change, count, passages, ALPHA),
        "detectable_corrected": _detectable(sd, change, count, passages, level),
        "target_difference": target_difference,
        "samples_needed": samples_needed(sd, target_difference, ALPHA, change),
        "samples_needed_corrected": samples_needed(sd, target_difference, level, change),
        "formula": POWER_FORMULA,
    }


def recovered(names: Sequence[str], evidence: Evidence) -> dict[str, tuple[float | None, Interval | None]]:
    """Return each result's share of the clean score, (score - empty) / (clean - empty), with a 95% interval."""
    found: dict[str, tuple[float | None, Interval | None]] = dict.fromkeys(names, (None, None))
    if evidence.clean is None or evidence.empty is None:
        return found
    for shared in evidence.shared(names, evidence.clean["name"], evidence.empty["name"]):
        clean, empty = shared.references
        found |= zip(shared.names, recovered_shares(shared.scores, clean, empty, SEED, shared.clusters), strict=True)
    return found
