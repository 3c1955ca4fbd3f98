"""Scores of configurations that were chosen among several. Main entries: `selected()` and `level_with()`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from latentwire.analysis.controls import SEED, Evidence, Shared
from latentwire.analysis.records import Selected
from latentwire.stats.clusters import SampledClusters
from latentwire.stats.selection import ROUNDING, CrossFit, cross_fit, level_with_best


def selected(best: str, names: Sequence[str], evidence: Evidence) -> Selected | None:
    """Return the cross-fit score of the best of several results, and its difference from the baseline.

    Args:
        best: Name of the best result.
        names: Names of the results among which it was chosen, with `best`.
        evidence: Baseline and scores of the source.

    Returns:
        The scores, or None for a single result, or for too few passages to choose on half of them.
    """
    shared = _with(best, evidence.shared(names))
    if shared is None or len(shared.names) < 2:
        return None
    own = cross_fit(shared.scores, shared.clusters, SEED)
    if own is None:
        return None
    gain: CrossFit | None = None
    if evidence.baseline is not None:
        against = _with(best, evidence.shared(names, evidence.baseline["name"]))
        if against is not None:
            gain = cross_fit(against.scores, against.clusters, SEED, against.scores - against.references[0])
    low, high = own.interval
    return {
        "score": own.mean,
        "score_interval": (max(0.0, low), min(1.0, high)),
        "difference": None if gain is None else gain.mean,
        "difference_interval": None if gain is None else gain.interval,
        "recovered": _recovered(own.mean, best, evidence),
        "among": len(shared.names),
        "chosen": float(own.chosen[shared.names.index(best)]),
    }


def _recovered(score: float, best: str, evidence: Evidence) -> float | None:
    """Return the share of the clean score that a cross-fit score recovers, on the examples of the best result."""
    if evidence.clean is None or evidence.empty is None:
        return None
    for shared in evidence.shared([best], evidence.clean["name"], evidence.empty["name"]):
        clean, empty = (float(values.mean()) for values in shared.references)
        return (score - empty) / (clean - empty) if abs(clean - empty) > ROUNDING else None
    return None


def level_with(best: str, names: Sequence[str], evidence: Evidence) -> list[str]:
    """Return the results that may be as good as the best one, on its examples.

    Args:
        best: Name of the best result.
        names: Names of the other results.
        evidence: Scores of the source.
    """
    shared = _with(best, evidence.shared([best, *names]))
    assert shared is not None, "a result shares its examples with itself"
    level = level_with_best(shared.scores, shared.clusters, SEED)
    return [name for name, is_level in zip(shared.names, level, strict=True) if is_level and name != best]


def _with(name: str, groups: Sequence[Shared]) -> Shared | None:
    """Return the group that contains a result."""
    return next((shared for shared in groups if name in shared.names), None)


def cross_fit_columns(systems: Sequence[Sequence[str]], evidence: Sequence[Evidence]) -> list[float] | None:
    """Return the cross-fit score on each source of the configuration with the highest mean over the sources.

    Args:
        systems: Names of the results of C configurations on each of the sources, (sources, C).
        evidence: Evidence of each source.

    Returns:
        A mean score for each source, or None if the results of a source do not share their examples, or for too few
        passages.
    """
    groups = [own.shared(names) for names, own in zip(systems, evidence, strict=True)]
    if any(len(shared) != 1 for shared in groups):
        return None
    # All examples side by side, each source with the same weight. The sources of another seed have other examples.
    counts = [shared.scores.shape[1] for (shared,) in groups]  # N_s
    passages = [
        passage for names, own in zip(systems, evidence, strict=True) for passage in own.scores[names[0]].passages
    ]
    weighted = np.concatenate([shared.scores / shared.scores.shape[1] for (shared,) in groups], axis=1)  # (C, sum N_s)
    source_of = np.repeat(np.arange(len(groups)), counts)
    clusters = SampledClusters(passages)
    found = [
        cross_fit(weighted, clusters, SEED, np.where(source_of == source, weighted, 0.0) * len(source_of))
        for source in range(len(groups))
    ]
    means = [one.mean for one in found if one is not None]
    return means if len(means) == len(groups) else None
