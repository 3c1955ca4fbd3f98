"""Examples in clusters, such as questions about one passage. Main entry: `SampledClusters`."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
MOST_KEPT = 10_000 * 10_000  # counts of resamples that are kept at most, of 2 bytes each

Scores = NDArray[np.float64]


class SampledClusters:
    """N examples in M clusters. Clusters were sampled independently, so statistics resample them, not examples.

    Args:
        labels: Cluster of each example, (N,), N >= 1. Equal labels are one cluster.

    >>> SampledClusters(["a", "b", "a"]).sums(np.array([[1.0, 2.0, 3.0]]))
    array([[4., 2.]])
    """

    def __init__(self, labels: Sequence[Hashable]) -> None:
        numbers: dict[Hashable, int] = {}
        self.of: NDArray[np.int64] = np.array([numbers.setdefault(label, len(numbers)) for label in labels])  # (N,)
        self.sizes: Scores = np.bincount(self.of).astype(np.float64)  # (M,)

    @classmethod
    def single(cls, count: int) -> SampledClusters:
        """Return `count` examples, each a cluster of its own."""
        return cls(range(count))

    @property
    def count(self) -> int:
        """Number of clusters, M."""
        return len(self.sizes)

    @property
    def examples(self) -> int:
        """Number of examples, N."""
        return len(self.of)

    @property
    def effective(self) -> float:
        """Number of clusters of equal size that show as much, N² / sum of the squared sizes: M for equal sizes.

        Source: Kish 1965, Survey Sampling, section 5.4.
        """
        return float(self.examples**2 / np.square(self.sizes).sum())

    @cached_property
    def _order(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the examples cluster by cluster, (N,), and the place at which each cluster begins, (M,)."""
        begins = np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).astype(np.int64)
        return np.argsort(self.of, kind="stable"), begins

    def sums(self, scores: Scores) -> Scores:
        """Return the sum of each cluster's scores: (S, N) -> (S, M)."""
        if self.count == self.examples:
            return scores  # each example is a cluster, numbered in order
        order, begins = self._order
        found: Scores = np.add.reduceat(scores[:, order], begins, axis=1)
        return found

    def apart(self, scores: Scores) -> Scores:
        """Return how many clusters have a score above 0, or below 1, whichever are fewer: (S, N) -> (S,)."""
        above, below = (self.sums(found.astype(np.float64)) > 0 for found in (scores > 0, scores < 1))
        fewer: Scores = np.minimum(above.sum(axis=1), below.sum(axis=1)).astype(np.float64)
        return fewer

    def variances(self, scores: Scores) -> Scores:
        """Return the estimated variance of each mean over examples: (S, N) -> (S,).

        It is the jackknife variance over clusters, which with one example each is s² / N. A cluster with most of the
        examples pulls the mean towards itself, so its residual is compared with the mean of the others. One cluster
        gives no variance, so the result is infinite.

        Source: Cochran 1977, Sampling Techniques, sections 6.3 and 6.17.
        """
        if self.count < 2:
            return np.full(len(scores), np.inf)
        residuals = self.sums(scores - scores.mean(axis=1, keepdims=True))  # (S, M)
        without = residuals / (self.examples - self.sizes)  # by how much each cluster moves the mean, (S, M)
        found: Scores = (self.count - 1) / self.count * np.square(without).sum(axis=1)
        return found

    def design_effects(self, scores: Scores) -> Scores:
        """Return by what factor clustering raises the variance of each mean: (S, N) -> (S,); 1 without variance."""
        single = scores.var(axis=1, ddof=1) / self.examples if self.examples > 1 else np.zeros(len(scores))
        variances = self.variances(scores)
        spread = single > 1e-15
        found: Scores = np.where(spread, variances / np.where(spread, single, 1.0), 1.0)
        return found

    def resampled_means(self, scores: Scores, seed: int) -> Scores:
        """Return bootstrap means over examples, with all systems on the same resamples of the clusters.

        Args:
            scores: Scores of S systems, (S, N).
            seed: Seed of the resampling.

        Returns:
            Means in R = RESAMPLES resamples, (S, R).
        """
        sums = self.sums(scores)
        means = np.empty((len(scores), RESAMPLES))
        start = 0
        for draws in _multinomial_draws(self.count, seed):  # (r, M)
            means[:, start : start + len(draws)] = sums @ draws.T / (draws @ self.sizes)
            start += len(draws)
        return means

    def halves(self, generator: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return a random half of the clusters and the rest, as masks of the examples, (N,) each."""
        order = generator.permutation(self.count)
        first = np.isin(self.of, order[: self.count // 2])
        return first, ~first


def _multinomial_draws(count: int, seed: int) -> Iterator[Scores]:
    """Yield how often each of `count` units is drawn in each resample, in blocks (r, count) of RESAMPLES rows in all.

    Args:
        count: Number of units.
        seed: Seed of the resampling.
    """
    block = max(1, 2_000_000 // count)  # bounds the memory for any number of units
    kept = _draws(count, seed) if RESAMPLES * count <= MOST_KEPT else None
    generator = np.random.default_rng(seed)
    for start in range(0, RESAMPLES, block):
        size = min(block, RESAMPLES - start)
        drawn = _multinomial(generator, count, size) if kept is None else kept[start : start + size]
        yield drawn.astype(np.float64)


def _multinomial(generator: np.random.Generator, count: int, size: int) -> NDArray[np.int64]:
    """Return the count of each of N examples in each resample, (size, N)."""
    return generator.multinomial(count, np.full(count, 1 / count), size=size)


@lru_cache(maxsize=2)
def _draws(count: int, seed: int) -> NDArray[np.uint16]:
    """Return the counts of all resamples, (R, N). They are kept because an analysis uses them many times."""
    generator = np.random.default_rng(seed)
    kept = np.empty((RESAMPLES, count), dtype=np.uint16)  # a unit is drawn at most `count` times
    block = max(1, 2_000_000 // count)
    for start in range(0, RESAMPLES, block):
        kept[start : start + block] = _multinomial(generator, count, min(block, RESAMPLES - start))
    return kept
