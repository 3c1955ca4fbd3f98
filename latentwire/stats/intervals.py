"""95% intervals of means, bootstrap means and quantiles of Student's t. Main entry: `mean_interval()`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv, stdtrit

from latentwire.stats.clusters import RESAMPLES as RESAMPLES
from latentwire.stats.clusters import SampledClusters
from latentwire.stats.clusters import Scores as Scores

FEW_APART = 10  # fewer clusters with scores that differ from 0, or from 1, do not show their variance
FEW = 16  # fewer clusters are too few to resample a ratio, or a level between two others

Interval = tuple[float, float]  # lower and upper end


def mean_interval(scores: Sequence[float] | Scores, clusters: SampledClusters | None = None) -> Interval:
    """Return the 95% interval of a mean of scores in [0, 1].

    It is Wilson's interval with an effective number of examples, m (1 - m) / variance, and Student's quantile. The
    variance comes from the clusters. Wilson's shape fits means near 0 and 1; the effective number fits scores between
    0 and 1, which vary less than binary ones.

    Where scores of fewer than FEW_APART clusters differ from 0, or from 1, the variance is not known well, nor how
    alike the examples of a cluster are. The effective number is then at most the number of clusters, as for binary
    scores of clusters whose examples are alike, and the interval is the wider one of Wilson's and the exact one.
    Clusters count by `SampledClusters.effective`, because one cluster with most of the examples shows little.

    Source: Kott and Carr 1997, Developing an estimation strategy for a pesticide data program, J. Official Statistics.

    Args:
        scores: One score in [0, 1] for each example, (N,).
        clusters: SampledClusters of the examples; None: each example is a cluster of its own.
    """
    values = np.asarray(scores, dtype=np.float64)
    mean = float(values.mean())
    sampled = SampledClusters.single(len(values)) if clusters is None else clusters
    if sampled.count < 2:
        return wilson_interval(mean, 1)
    variance, apart = float(sampled.variances(values[None])[0]), float(sampled.apart(values[None])[0])
    return interval_of(mean, variance, sampled, apart)


def interval_of(mean: float, variance: float, clusters: SampledClusters, apart: float) -> Interval:
    """Return the interval of `mean_interval` from the estimated variance of the mean.

    Args:
        mean: Mean of the scores.
        variance: Its estimated variance.
        clusters: At least two SampledClusters of the examples.
        apart: Number of clusters with a score above 0, or below 1, whichever are fewer.
    """
    t = t_quantile(0.95, degrees_of_freedom(clusters))
    effective = mean * (1 - mean) / variance if variance > 1e-15 else clusters.effective
    if apart >= FEW_APART and clusters.examples * min(mean, 1 - mean) >= 2:
        return wilson_interval(mean * effective, effective, t)
    effective = min(effective, clusters.effective)
    by_wilson, exact = wilson_interval(mean * effective, effective, t), exact_interval(mean * effective, effective)
    return min(by_wilson[0], exact[0]), max(by_wilson[1], exact[1])


def degrees_of_freedom(clusters: SampledClusters) -> int:
    """Return the degrees of freedom of a variance over clusters: the effective number of clusters - 1, at least 1."""
    return max(1, math.floor(clusters.effective + 1e-9) - 1)


def resampled_means(scores: Scores, seed: int) -> Scores:
    """Return bootstrap means of several systems over the same resamples of the examples.

    Args:
        scores: Scores of S systems on N examples, (S, N).
        seed: Seed of the resampling.

    Returns:
        Means of each system over R = RESAMPLES resamples, (S, R).
    """
    return SampledClusters.single(scores.shape[1]).resampled_means(scores, seed)


def wilson_interval(successes: float, count: float, z: float = 1.959963984540054) -> Interval:
    """Return Wilson's score interval of a proportion. Unlike the bootstrap interval, it has a width at 0 and 1.

    Args:
        successes: Number of successes, or sum of scores in [0, 1].
        count: Number of examples, or an effective number.
        z: Quantile of the standard normal distribution; the default gives 95%.
    """
    rate = successes / count
    centre = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half_width = z / (1 + z * z / count) * (rate * (1 - rate) / count + z * z / (4 * count * count)) ** 0.5
    return max(0.0, min(rate, centre - half_width)), min(1.0, max(rate, centre + half_width))


def exact_interval(successes: float, count: float) -> Interval:
    """Return the exact 95% interval of a proportion, which never covers less.

    Source: Clopper and Pearson 1934, The use of confidence or fiducial limits, Biometrika 26.

    Args:
        successes: Number of successes, or sum of scores in [0, 1].
        count: Number of examples, or an effective number.
    """
    low = float(betaincinv(successes, count - successes + 1, 0.025)) if successes > 0 else 0.0
    high = float(betaincinv(successes + 1, count - successes, 0.975)) if successes < count else 1.0
    return low, high


def t_quantile(within: float, degrees: int) -> float:
    """Return the t for which Student's t is between -t and t with the probability `within`."""
    return float(stdtrit(degrees, (1 + within) / 2))


@dataclass(frozen=True)
class Difference:
    """A paired difference between two systems, over the same examples or runs."""

    difference: float  # mean difference
    interval: Interval  # 95%
    p_value: float  # two-sided; null hypothesis: no difference
