"""Paired comparisons of systems with a baseline on the same examples. Main entry: `compare_paired()`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latentwire.stats.intervals import RESAMPLES, Difference, Interval, Scores, resampled_means


@dataclass(frozen=True)
class Comparison(Difference):
    """A paired difference in a family of comparisons."""

    p_holm: float  # p-value after Holm's correction over the family


def compare_paired(systems: Scores, baseline: Scores, seed: int) -> list[Comparison]:
    """Compare each system with the baseline, example by example, by a paired bootstrap.

    The p-value is the share of resampled, centred mean differences that are at least as large as the observed one.
    The observed difference counts as a resample, so p is at least 1 / (RESAMPLES + 1).

    If two systems differ on m examples, p is also at least 2^(1 - m), the smallest p-value of a sign-flip test. This
    matters for a few equal differences, which have no variance to resample.

    Holm's step-down correction covers all systems.

    Args:
        systems: Scores of S systems on N examples, (S, N).
        baseline: Scores of the baseline on the same examples, (N,).
        seed: Seed of the resampling.

    Returns:
        Comparison of each system with the baseline, in the order of `systems`.
    """
    return corrected(paired_bootstrap(systems, baseline, seed))


def corrected(differences: Sequence[Difference]) -> list[Comparison]:
    """Return differences as one family of comparisons, with Holm's correction over the family."""
    p_holm = holm(np.array([difference.p_value for difference in differences]))
    return [Comparison(**vars(difference), p_holm=float(p)) for difference, p in zip(differences, p_holm, strict=True)]


def paired_bootstrap(systems: Scores, baseline: Scores, seed: int) -> list[Difference]:
    """Return the differences of `compare_paired()` before Holm's correction.

    Args:
        systems: Scores of S systems on N examples, (S, N).
        baseline: Scores of the baseline on the same examples, (N,).
        seed: Seed of the resampling.
    """
    if len(systems) == 0:
        return []
    differences = systems - baseline
    observed = differences.mean(axis=1)
    means = resampled_means(differences, seed)
    extreme = np.abs(means - observed[:, None]) >= np.abs(observed)[:, None] - 1e-12
    p_values = (extreme.sum(axis=1) + 1) / (RESAMPLES + 1)
    p_values = np.maximum(p_values, np.minimum(1.0, 2.0 ** (1 - (differences != 0).sum(axis=1))))
    lows, highs = np.quantile(means, [0.025, 0.975], axis=1)
    return [
        Difference(float(d), (float(low), float(high)), float(p))
        for d, low, high, p in zip(observed, lows, highs, p_values, strict=True)
    ]


def holm(p_values: Scores) -> Scores:
    """Return the p-values of a family after Holm's step-down correction, (S,), in the same order."""
    order = np.argsort(p_values, kind="stable")
    count = len(p_values)
    ascending = np.maximum.accumulate(p_values[order] * (count - np.arange(count)))
    result = np.empty(count)
    result[order] = np.minimum(ascending, 1.0)
    return result


def recovered_shares(
    systems: Scores, clean: Scores, empty: Scores, seed: int
) -> list[tuple[float | None, Interval | None]]:
    """Return (score - empty) / (clean - empty) of each system with its 95% bootstrap interval over examples.

    Both are None unless the mean of clean is above the mean of empty in at least 97.5% of the resamples.

    Args:
        systems: Scores of S systems on N examples, (S, N).
        clean: Scores of the clean control on the same examples, (N,).
        empty: Scores of the empty context on the same examples, (N,).
        seed: Seed of the resampling.
    """
    headroom = float(clean.mean() - empty.mean())
    means = resampled_means(np.vstack([systems, clean, empty]), seed)
    headrooms = means[-2] - means[-1]  # (R,)
    if headroom <= 0 or np.quantile(headrooms, 0.025) <= 0:
        return [(None, None)] * len(systems)
    usable = headrooms > 0
    found: list[tuple[float | None, Interval | None]] = []
    for system, resampled in zip(systems, means, strict=False):
        share = float(system.mean() - empty.mean()) / headroom
        low, high = np.quantile((resampled - means[-1])[usable] / headrooms[usable], [0.025, 0.975])
        found.append((share, (float(low), float(high))))
    return found
