"""Means over few training seeds: intervals, p-values, equivalence and power. Main entry: `mean_over_seeds()`.

Differences over 5 to 20 seeds are few and may be skewed. Student's interval covers .935 at a skewness of 1 (10 seeds),
and a percentile bootstrap covers .90 even without skewness. Hall's transformation of Student's statistic removes the
effect of skewness. With the skewness of 5 to 10 values it makes some intervals several times too long. Half of the
observed skewness is corrected here: intervals cover about .94 at a skewness of 1, and are at most about 1.2 times as
long as Student's. Without skewness nothing changes.

The far tails of this statistic are too thin, and they count after Holm's correction. A p-value is therefore the larger
one of this statistic's and Student's. `benchmarks/seed_statistics.py` has the simulations.

Source: Hall 1992, On the removal of skewness by transformation, J. R. Statist. Soc. B 54, with Student's quantiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import gammaincinv, stdtr, stdtrit

from latentwire.stats.clusters import SampledClusters
from latentwire.stats.intervals import Difference, Interval, Scores
from latentwire.stats.power import POWER

ROUNDING = 1e-12  # values that differ by less, relative to their size, are equal
SHRUNK = 0.5  # share of the observed skewness that is corrected
DRAWS = 20_000  # simulated experiments of a power
MANY = 100  # seeds from which on a simulated experiment needs no single values


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests of whether a mean is within -margin .. margin."""

    margin: float
    p_value: float  # the larger of the two one-sided p-values
    interval: Interval  # 90%


def mean_over_seeds(values: Scores) -> list[Difference]:
    """Return the mean of each row with its 95% interval and two-sided p-value over seeds.

    If all values of a row are equal, the interval collapses to the mean and p = 1.

    Args:
        values: One paired difference for each of n >= 2 independent seeds, (S, n).
    """
    lows, highs = _ends(values, 0.975)
    p_values = two_sided_p(values)
    return [
        Difference(float(mean), (float(low), float(high)), float(p))
        for mean, low, high, p in zip(values.mean(axis=1), lows, highs, p_values, strict=True)
    ]


def interval_over_clusters(values: Scores, clusters: SampledClusters, least: float = -math.inf) -> Interval:
    """Return the 95% interval of a mean of skewed values, such as losses and rewards, over clusters of examples.

    It is the interval of `mean_over_seeds` for the linearised values of the clusters. With 20, 50 and 200 exponential
    values it covers .931, .945 and .946; Student's covers .917, .938 and .942, a percentile bootstrap .907, .933 and
    .927. Equal values, and a single cluster, show no spread: the interval collapses to the mean.

    Args:
        values: A number for each example, (N,).
        clusters: SampledClusters of the examples.
        least: Smallest possible mean, below which the interval does not extend.
    """
    mean = float(values.mean())
    if clusters.count < 2:
        return mean, mean
    deviations = clusters.sums(values[None] - mean)  # (1, M)
    (found,) = mean_over_seeds(mean + deviations * clusters.count / clusters.examples)
    low, high = found.interval
    return max(least, low), high


def two_sided_p(values: Scores) -> Scores:
    """Return the p-values of the hypothesis that the mean over the last axis is 0, (..., n) -> (...)."""
    smaller = np.minimum(_p_at_least(values, 0.0), _p_at_least(-values, 0.0))
    result: Scores = np.where(_has_spread(values), np.minimum(2 * smaller, 1.0), 1.0)
    return result


def equivalence_over_seeds(values: Scores, margins: Sequence[float]) -> list[Equivalence]:
    """Return two one-sided tests for each row. Rows with equal values have p = 1, as no spread is known.

    Source: Schuirmann 1987.

    Args:
        values: One paired difference for each of n >= 2 seeds, (S, n).
        margins: The largest difference that does not matter for each row, above 0, S values.
    """
    limits = np.asarray(margins, dtype=np.float64)
    above_lower = _p_at_least(values, -limits)  # p-value of: the mean is at most -margin
    below_upper = _p_at_least(-values, -limits)  # p-value of: the mean is at least the margin
    p_values = np.where(_has_spread(values), np.maximum(above_lower, below_upper), 1.0)
    lows, highs = _ends(values, 0.95)
    return [
        Equivalence(float(margin), float(p), (float(low), float(high)))
        for margin, p, low, high in zip(limits, p_values, lows, highs, strict=True)
    ]


def _has_spread(values: Scores) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    found: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = np.ptp(values, axis=-1) > ROUNDING * np.maximum(
        1.0, np.abs(values).max(axis=-1)
    )
    return found


def _moments(values: Scores) -> tuple[Scores, Scores, Scores]:
    """Return means, standard deviations (n - 1) and corrected skewnesses over the last axis; sd 1 without spread."""
    means = values.mean(axis=-1)
    deviations = values - means[..., None]
    spread = _has_spread(values)
    sds = np.where(spread, values.std(axis=-1, ddof=1), 1.0)
    seconds = np.where(spread, (deviations**2).mean(axis=-1), 1.0)
    return means, sds, np.where(spread, SHRUNK * (deviations**3).mean(axis=-1) / seconds**1.5, 0.0)


def _p_at_least(values: Scores, means: float | Scores) -> Scores:
    """Return the one-sided p-values of the hypothesis that the true means are at most `means`, the larger of two."""
    n = values.shape[-1]
    observed, sds, skewness = _moments(values)
    w = (observed - means) / sds
    corrected = w + skewness * w**2 / 3 + skewness**2 * w**3 / 27 + skewness / (6 * n)
    result: Scores = stdtr(n - 1, -np.sqrt(n) * np.minimum(w, corrected))
    return result


def _ends(values: Scores, quantile: float) -> tuple[Scores, Scores]:
    """Return both ends of the intervals over the last axis; each excludes 1 - quantile."""
    n = values.shape[-1]
    means, sds, skewness = _moments(values)
    t = stdtrit(n - 1, quantile) / np.sqrt(n)
    scale = np.where(_has_spread(values), sds, 0.0)
    return means - scale * _uncorrected(t, skewness, n), means - scale * _uncorrected(-t, skewness, n)


def _uncorrected(corrected: float, skewness: Scores, n: int) -> Scores:
    """Return the w whose corrected value is given; see `_p_at_least`. The correction is monotone in w."""
    third = skewness / 3
    shifted = corrected - skewness / (6 * n)
    small = np.abs(third) < 1e-9
    result: Scores = np.where(small, shifted, (np.cbrt(1 + 3 * third * shifted) - 1) / np.where(small, 1.0, third))
    return result


def power_over_seeds(difference: float, sd: float, count: int, alpha: float, planned: int | None = None) -> float:
    """Return the probability that an experiment detects a difference with the test of `two_sided_p`.

    It is simulated with normal differences and random numbers of its own. The true standard deviation is unknown, so
    the power is averaged over what an estimate from `count` seeds can be. It thus holds over many experiments whose
    power is predicted in this way.

    Args:
        difference: True difference.
        sd: Standard deviation of the paired differences of `count` seeds, above 0.
        count: Number of these seeds, at least 2.
        alpha: Two-sided significance level of one comparison.
        planned: Number of seeds of the experiment; None: `count`.
    """
    return float((_needed_shifts(count, planned or count, alpha) <= abs(difference) / sd).mean())


def detectable_over_seeds(sd: float, count: int, alpha: float) -> float:
    """Return the difference that `power_over_seeds` detects with probability POWER.

    Args:
        sd: Standard deviation of the paired differences.
        count: Number of seeds, at least 2.
        alpha: Two-sided significance level of one comparison.
    """
    return sd * float(np.quantile(_needed_shifts(count, count, alpha), POWER))


def seeds_needed(difference: float, sd: float, count: int, alpha: float, most: int) -> int | None:
    """Return the smallest number of seeds that detects a difference with probability POWER.

    Args:
        difference: True difference, above 0.
        sd: Standard deviation of the paired differences of `count` seeds, above 0.
        count: Number of these seeds, at least 2.
        alpha: Two-sided significance level of one comparison.
        most: Largest number to consider; if more are needed, None is returned.
    """
    low, high = 1, most
    if power_over_seeds(difference, sd, count, alpha, most) < POWER:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        enough = power_over_seeds(difference, sd, count, alpha, middle) >= POWER
        low, high = (low, middle) if enough else (middle, high)
    return high


@lru_cache(maxsize=64)
def _needed_shifts(count: int, planned: int, alpha: float) -> Scores:
    """Return the true difference, in estimated standard deviations, from which each simulated experiment detects it.

    Args:
        count: Number of seeds of the estimate.
        planned: Number of seeds of the experiment.
        alpha: Two-sided significance level.

    Returns:
        A value for each of DRAWS pairs of an experiment and an independent estimate, (DRAWS,).
    """
    generator = np.random.default_rng(0)
    uniform = generator.random((2, DRAWS))
    estimates = np.sqrt(2 * gammaincinv((count - 1) / 2, uniform[0]) / (count - 1))  # sample sd / sd, by chi-square
    student = np.full(DRAWS, stdtrit(planned - 1, 1 - alpha / 2) / np.sqrt(planned))
    if planned > MANY:
        means = generator.standard_normal(DRAWS) / np.sqrt(planned)
        sds = np.sqrt(2 * gammaincinv((planned - 1) / 2, uniform[1]) / (planned - 1))
        needed = student
    else:
        values = generator.standard_normal((DRAWS, planned))
        means, sds, skewness = _moments(values)
        needed = np.maximum(student, _uncorrected(float(student[0]), skewness, planned))
    shifts: Scores = (needed * sds - means) / estimates
    return shifts
