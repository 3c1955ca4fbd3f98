"""95% intervals of means: bootstrap, Wilson, and Student's t over runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000


FEW = 16  # examples; resampling fewer says too little of a ratio, or of a level between two others


Interval = tuple[float, float]


Scores = NDArray[np.float64]


def bootstrap_interval(scores: Sequence[float], seed: int) -> Interval:
    """Return the 95% percentile bootstrap interval of a mean over examples.

    Where all scores are equal, resampling knows no spread; then Wilson's interval of a proportion stands in. It
    is conservative: a score in [0, 1] varies at most as much as a coin of the same mean.

    Args:
        scores: One score in [0, 1] an example, (N,).
        seed: Of the resampling.
    """
    values = np.asarray(scores, dtype=np.float64)
    if np.ptp(values) == 0:
        return wilson_interval(float(values.sum()), len(values))
    return percentile_interval(values, seed)


def percentile_interval(values: Scores, seed: int) -> Interval:
    """Return the 95% percentile bootstrap interval of a mean of any numbers, (N,); none wide where all are equal."""
    low, high = np.quantile(resampled_means(values[None], seed)[0], [0.025, 0.975])
    return float(low), float(high)


def resampled_means(scores: Scores, seed: int) -> Scores:
    """Return bootstrap means of several systems over the same resamples of examples: (S, N) -> (S, R)."""
    count = scores.shape[1]
    means = np.empty((scores.shape[0], RESAMPLES))
    block = max(1, 2_000_000 // count)  # bounds the memory, whatever N is
    if block >= RESAMPLES:
        return np.asarray(scores @ _draws(count, RESAMPLES, seed).T / count)
    generator = np.random.default_rng(seed)
    for start in range(0, RESAMPLES, block):
        size = min(block, RESAMPLES - start)
        means[:, start : start + size] = scores @ _multinomial(generator, count, size).T / count
    return means


def _multinomial(generator: np.random.Generator, count: int, size: int) -> Scores:
    """Return how often each example is drawn, (size, N): counts turn resampled means into one matrix product."""
    return generator.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)


@lru_cache(maxsize=2)
def _draws(count: int, resamples: int, seed: int) -> Scores:
    """Return the draws of all resamples; an analysis asks for the same ones many times."""
    return _multinomial(np.random.default_rng(seed), count, resamples)


def wilson_interval(successes: float, count: int, z: float = 1.959963984540054) -> Interval:
    """Return Wilson's score interval of a proportion; unlike the bootstrap's it is honest at 0 and 1."""
    rate = successes / count
    centre = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (rate * (1 - rate) / count + z * z / (4 * count * count)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_over_runs(values: Scores) -> list[Difference]:
    """Return the mean of each row of differences with its 95% interval over runs, (S, n) -> S of them.

    Student's t with n - 1 degrees of freedom: it takes the runs as independent and their differences as normal, which a
    handful cannot show. A row without any spread says nothing of it: its interval is its mean and its p-value 1.

    Args:
        values: One difference for each of n runs, n at least 2.
    """
    n = values.shape[1]
    means, errors = values.mean(axis=1), values.std(axis=1, ddof=1) / math.sqrt(n)
    half = errors * t_quantile(0.95, n - 1)
    return [
        Difference(float(m), (float(m - h), float(m + h)), 1 - t_within(abs(float(m / e)), n - 1) if e else 1.0)
        for m, h, e in zip(means, half, np.where(np.ptp(values, axis=1) > 0, errors, 0.0), strict=True)
    ]


def t_within(t: float, degrees: int) -> float:
    """Return the chance that Student's t lies between -t and t (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    square, odd = math.cos(angle) ** 2, degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(2 + odd, degrees - 1, 2):
        term *= square * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def t_quantile(within: float, degrees: int) -> float:
    """Return the t between which and its negative Student's t lies with a chance of `within`, by bisection."""
    low, high = 0.0, 1.0
    while t_within(high, degrees) < within:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_within(middle, degrees) < within else (low, middle)
    return high


@dataclass(frozen=True)
class Difference:
    """A paired difference of one system from another over the same examples."""

    difference: float  # mean of the per-example differences
    interval: Interval  # 95%, bootstrap over examples
    p_value: float  # two-sided, of no difference
