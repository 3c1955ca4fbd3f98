"""Systems that were chosen among many on the same examples. Main entries: `cross_fit()` and `level_with_best()`.

The highest of many means is too high on average, because it was chosen for being high. Cross-fitting chooses on one
half of the clusters and scores on the other, in both directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentwire.stats.clusters import RESAMPLES, SampledClusters, Scores
from latentwire.stats.comparison import unseen_changes
from latentwire.stats.intervals import Interval, degrees_of_freedom, interval_of, t_quantile
from latentwire.stats.power import ALPHA, needed_changes

HALVINGS = 100  # random halvings, over which a cross-fit score is averaged
BLOCK = 10_000_000  # numbers that comparisons of all pairs have in memory at a time
ROUNDING = 1e-12  # means that differ by less are ties


@dataclass(frozen=True)
class CrossFit:
    """What the choice of the best system gives on examples that did not take part in the choice."""

    mean: float
    interval: Interval  # 95%
    chosen: Scores  # share of the halves that choose each system, (S,)


def cross_fit(
    systems: Scores,
    clusters: SampledClusters,
    seed: int,
    scored: Scores | None = None,
    unchanged: Scores | None = None,
) -> CrossFit | None:
    """Choose the best system on one half of the clusters and score it on the other half, in both directions.

    Systems of equal mean share the choice. The result is averaged over HALVINGS random halvings. Its variance is the
    mean variance of a halving. The interval of scores in [0, 1] is the one of `intervals.mean_interval`. The interval
    of differences uses Student's t, and adds two unseen changes as in `comparison.paired_differences`.

    Source: Chernozhukov et al. 2018, Double/debiased machine learning, sections 3 and 3.4.

    Args:
        systems: Scores by which S systems are chosen, (S, N).
        clusters: SampledClusters of the examples.
        seed: Seed of the halvings.
        scored: Differences of the same systems to average, (S, N); None: the scores of the choice.
        unchanged: Difference of each example where nothing changed, (N,); None: 0.

    Returns:
        The mean of the chosen systems, or None for fewer than 4 clusters, whose halves cannot choose.
    """
    count, values = len(systems), systems if scored is None else scored
    if clusters.count < 4:
        return None
    generator = np.random.default_rng(seed)
    first = np.array([clusters.halves(generator)[0] for _ in range(HALVINGS)])  # (H, N)
    fitted, chosen = np.empty((HALVINGS, systems.shape[1])), np.zeros(count)
    for own in (first, ~first):
        means = systems @ (own / own.sum(axis=1, keepdims=True)).T  # (S, H)
        best = means >= means.max(axis=0) - ROUNDING
        share = best / best.sum(axis=0)  # (S, H)
        fitted[~own] = (share.T @ values)[~own]
        chosen += share.sum(axis=1)
    mean, variance = float(fitted.mean()), float(clusters.variances(fitted).mean())
    if scored is None:
        apart = float(clusters.apart(fitted).mean())
        return CrossFit(mean, interval_of(mean, variance, clusters, apart), chosen / (2 * HALVINGS))
    unseen = unseen_changes(fitted if unchanged is None else fitted - unchanged, clusters)  # (HALVINGS,)
    variance += 2 * float(np.square(unseen).mean()) / clusters.examples**2
    half = t_quantile(0.95, degrees_of_freedom(clusters)) * variance**0.5
    return CrossFit(mean, (mean - half, mean + half), chosen / (2 * HALVINGS))


def level_with_best(systems: Scores, clusters: SampledClusters, seed: int) -> NDArray[np.bool_]:
    """Return which systems may be the best, (S,): systems that no other system exceeds beyond noise.

    All pairs are compared at once. The limit is a quantile of the largest studentised difference among all pairs, with
    the signs of the clusters' differences flipped at random. Pairs that differ in too few clusters for a test are
    level. A system of the highest true mean is called not level in at most about 5% of families, also of few clusters.

    Source: Hsu 1996, Multiple comparisons, chapter 4; Westfall and Young 1993 for the largest statistic.

    Args:
        systems: Scores of S systems, (S, N).
        clusters: SampledClusters of the examples.
        seed: Seed of the flips.
    """
    count = len(systems)
    if count == 1 or clusters.count < 2:
        return np.ones(count, dtype=bool)
    first, second = np.triu_indices(count, 1)
    sums = clusters.sums(systems)  # (S, M)
    unseen = 1.0  # as in `comparison.paired_differences`: pairs of nearly equal answers have no sharp spread
    flips = np.random.default_rng(seed).choice([-1.0, 1.0], (RESAMPLES // 5, clusters.count + 2))  # (R, M + 2)
    largest, differences = np.zeros(len(flips)), np.zeros(len(first))  # (R,), (P,)
    block = max(1, BLOCK // (clusters.count + len(flips)))  # bounds the memory for any number of pairs
    for start in range(0, len(first), block):
        own = slice(start, start + block)
        pairs = sums[first[own]] - sums[second[own]]  # (p, M)
        spread = np.sqrt(np.square(pairs).sum(axis=1) + 2 * unseen)  # (p,)
        flipped = pairs @ flips[:, :-2].T + unseen * (flips[:, -2] - flips[:, -1])  # (p, R)
        largest = np.maximum(largest, (np.abs(flipped) / spread[:, None]).max(axis=0))
        enough = (np.abs(pairs) > ROUNDING).sum(axis=1) >= needed_changes(ALPHA)
        differences[own] = np.where(enough, pairs.sum(axis=1) / spread, 0.0)
    limit = float(np.quantile(largest, 1 - ALPHA, method="higher"))
    level = np.ones(count, dtype=bool)
    level[second[differences > limit]] = False
    level[first[differences < -limit]] = False
    return level
