"""Exact match and F1 as SQuAD v1.1 scores them, intervals of means, paired comparisons and their power."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latentwire.stats.intervals import RESAMPLES, Difference, Interval, Scores, resampled_means


@dataclass(frozen=True)
class Comparison(Difference):
    """The same among others."""

    p_holm: float  # the p-value, corrected for the whole family of comparisons


def compare_paired(systems: Scores, baseline: Scores, seed: int) -> list[Comparison]:
    """Compare each system with the baseline, example by example, by a paired bootstrap.

    The p-value is the share of resampled, centred mean differences at least as large as the one observed,
    counting the observed one too, so that it is never below 1 / (RESAMPLES + 1). Nor is it below 2^(1 - m) with m the
    examples on which the two differ, the least that flipping signs can give: a few equal differences have no spread
    to resample. Holm's step-down correction runs over all the systems.

    Args:
        systems: Scores, (S, N).
        baseline: Scores of the baseline on the same examples, (N,).
        seed: Of the resampling.
    """
    bootstrapped = paired_bootstrap(systems, baseline, seed)
    return corrected(bootstrapped)


def corrected(bootstrapped: Sequence[Difference]) -> list[Comparison]:
    """Return differences as one family of comparisons, with Holm's correction over all of them."""
    p_holm = holm(np.array([one.p_value for one in bootstrapped]))
    return [Comparison(**vars(one), p_holm=float(p)) for one, p in zip(bootstrapped, p_holm, strict=True)]


def paired_bootstrap(systems: Scores, baseline: Scores, seed: int) -> list[Difference]:
    """Return the difference of each system from the baseline, as `compare_paired` has it, without the correction."""
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
    """Return Holm's step-down corrected p-values of a family, in the order given."""
    order = np.argsort(p_values, kind="stable")
    count = len(p_values)
    corrected = np.maximum.accumulate(p_values[order] * (count - np.arange(count)))
    result = np.empty(count)
    result[order] = np.minimum(corrected, 1.0)
    return result


def recovered_shares(
    systems: Scores, clean: Scores, empty: Scores, seed: int
) -> list[tuple[float | None, Interval | None]]:
    """Return (F1 - empty) / (clean - empty) of each system with its 95% bootstrap interval over examples.

    None where it means nothing: where clean is not clearly above empty, that is in 97.5% of the resamples.

    Args:
        systems: Scores, (S, N).
        clean: Scores of the clean control on the same examples, (N,).
        empty: Scores of the empty context on the same examples, (N,).
        seed: Of the resampling.
    """
    room = float(clean.mean() - empty.mean())
    means = resampled_means(np.vstack([systems, clean, empty]), seed)
    rooms = means[-2] - means[-1]  # (R,)
    if room <= 0 or np.quantile(rooms, 0.025) <= 0:
        return [(None, None)] * len(systems)
    usable = rooms > 0
    found: list[tuple[float | None, Interval | None]] = []
    for system, resampled in zip(systems, means, strict=False):
        share = float(system.mean() - empty.mean()) / room
        low, high = np.quantile((resampled - means[-1])[usable] / rooms[usable], [0.025, 0.975])
        found.append((share, (float(low), float(high))))
    return found
