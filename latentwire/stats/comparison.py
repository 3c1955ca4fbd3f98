"""Paired comparisons of systems with a baseline on the same examples. Main entry: `compare_paired()`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from latentwire.stats.clusters import RESAMPLES, SampledClusters, Scores
from latentwire.stats.intervals import FEW, Difference, Interval
from latentwire.stats.power import ALPHA

ENUMERATED = 11  # up to this number of clusters, all splits are enumerated
FEW_SPLITS = 20  # fewer splits against a difference give no sharp p-value, so more splits follow
RESOLUTION = 2_000  # splits for each comparison of a family
MOST_SPLITS = 200_000  # splits of one comparison, which bounds the time
Parts = tuple[Scores, Scores]  # lower and upper means of the parts of splits, (S, r) each

FEW_CHANGES = 5  # fewer changed examples do not show the size of the changes that may follow
UNSEEN = 1.9  # size of an unseen change where no example changed
ROUNDING = 1e-12  # smaller differences are rounding errors


@dataclass(frozen=True)
class PairedDifference(Difference):
    """A paired difference, with the number of clusters in which the two systems differ."""

    changed: int

    @property
    def testable(self) -> bool:
        """Whether the smallest p-value that sign flips of the changed clusters can reach is below ALPHA."""
        return 2.0 ** (1 - self.changed) < ALPHA


@dataclass(frozen=True)
class Comparison(Difference):
    """A paired difference in a family of comparisons."""

    p_holm: float  # p-value after Holm's correction over the family


def compare_paired(
    systems: Scores, baseline: Scores, seed: int, clusters: SampledClusters | None = None, largest: float | None = None
) -> list[Comparison]:
    """Compare each system with the baseline, and correct for the family; arguments as in `paired_differences`.

    Returns:
        Comparison of each system with the baseline, in the order of `systems`.
    """
    return corrected(paired_differences(systems, baseline, seed, clusters, largest))


def corrected(differences: Sequence[Difference]) -> list[Comparison]:
    """Return differences as one family of comparisons, with Holm's correction over the family.

    Differences that no test could show, because too few clusters changed, do not enter the family (Tarone 1990). The
    number of changed clusters does not depend on the signs that are flipped, so this keeps the error rate.
    """
    p_values = np.array([difference.p_value for difference in differences])
    enters = np.array([not isinstance(d, PairedDifference) or d.testable for d in differences], dtype=bool)
    p_holm = p_values.copy()
    p_holm[enters] = holm(p_values[enters])
    return [Comparison(d.difference, d.interval, d.p_value, float(p)) for d, p in zip(differences, p_holm, strict=True)]


def paired_differences(
    systems: Scores,
    baseline: Scores,
    seed: int,
    clusters: SampledClusters | None = None,
    largest: float | None = None,
    comparisons: int | None = None,
    unchanged: Scores | None = None,
) -> list[PairedDifference]:
    """Return the mean difference of each system from the baseline, with its interval and p-value by sign flips.

    A flip of signs splits the clusters into two parts. The differences minus a value have a flipped sum that is at
    least as large as their own exactly if the value is between the mean differences of both parts. So the share of
    splits with 0 between both means is the p-value, and the 5% and 95% quantiles of the lower and the upper mean are
    the ends of the 95% interval. Interval and p-value therefore always agree.

    Changes that these examples do not show are part of the error. One unseen change for the better and one for the
    worse are added, each of the size `largest` times the square root of the share of unchanged examples. They are
    larger where fewer than FEW_CHANGES examples changed. They never make a p-value smaller than the flips of the K
    changed clusters alone, 2^(1 - K) at least. `benchmarks/statistics.py` has the coverage.

    Sources: Hartigan 1969, Using subsample values as typical values; Agresti and Min 2005 for the two added changes.

    Args:
        systems: Scores of S systems on N examples, (S, N).
        baseline: Scores of the baseline on the same examples, (N,).
        seed: Seed of the random splits. Up to 2^13 splits are enumerated instead.
        clusters: SampledClusters of the examples; None: each example is a cluster of its own.
        largest: Largest possible difference of an example; None: the largest one of each system.
        comparisons: Number of comparisons of the family, which needs more splits for smaller p-values; None: S.
        unchanged: Difference of each unchanged example, (N,); from a share of a score it is not 0. None: 0.

    Returns:
        A difference for each of S systems.
    """
    differences = systems - baseline
    if len(differences) == 0:
        return []
    sampled = SampledClusters.single(differences.shape[1]) if clusters is None else clusters
    sums = sampled.sums(differences)  # (S, M)
    size = np.abs(differences).max(axis=1) if largest is None else np.full(len(differences), largest)  # (S,)
    unseen = size * unseen_changes(differences if unchanged is None else differences - unchanged, sampled)  # (S,)
    observed = differences.mean(axis=1)
    parts = list(_means_of_parts(sums, sampled.sizes, unseen, RESAMPLES, seed))
    lower, upper = (np.concatenate(means, axis=1) for means in zip(*parts, strict=True))  # (S, R)
    p_values = _p_values(parts)
    splits = min(RESOLUTION * (comparisons or len(differences)), MOST_SPLITS)
    rare = p_values < FEW_SPLITS / RESAMPLES
    if splits > RESAMPLES and sampled.count > ENUMERATED and bool(rare.any()):
        p_values[rare] = _p_values(_means_of_parts(sums[rare], sampled.sizes, unseen[rare], splits, seed + 1))
    changed = (np.abs(sums) > ROUNDING).sum(axis=1)
    smallest = np.minimum(2.0 ** (1 - changed), 1.0)  # p-value of the changed clusters if all change the same way
    p_values = np.maximum(p_values, smallest)
    lows, highs = _ends(lower, upper, size, largest)
    undecided = smallest >= ALPHA
    lows, highs = np.where(undecided, np.minimum(lows, 0), lows), np.where(undecided, np.maximum(highs, 0), highs)
    return [
        PairedDifference(float(d), (float(low), float(high)), float(p), int(count))
        for d, low, high, p, count in zip(observed, lows, highs, p_values, changed, strict=True)
    ]


def _ends(lower: Scores, upper: Scores, size: Scores, largest: float | None) -> tuple[Scores, Scores]:
    """Return both ends of each 95% interval, (S,) each, from the means of the parts of splits, (S, R) each.

    Too few clusters have no end; it is then the size of a change.
    """
    lows = np.quantile(lower, 0.05, axis=1, method="lower")
    highs = np.quantile(upper, 0.95, axis=1, method="higher")
    if largest is not None:
        lows, highs = np.maximum(lows, -largest), np.minimum(highs, largest)
    return np.where(np.isinf(lows), -size, lows), np.where(np.isinf(highs), size, highs)


def unseen_changes(differences: Scores, clusters: SampledClusters) -> Scores:
    """Return the size of each of the two unseen changes of size 1: (S, N) -> (S,).

    Its square is the share of unchanged examples, (N - K + 2) / (N + 2) with K changes. It is larger if the changes
    come together in clusters, as their sums show. Below FEW_CHANGES the size grows, up to UNSEEN without any change:
    the interval is then 4 to 5 / N to both sides, more than 3.7 / N, the exact two-sided bound of the changed share.
    """
    count = differences.shape[1]
    changed = (np.abs(differences) > ROUNDING).sum(axis=1)
    squares = np.square(differences).sum(axis=1)
    together = np.square(clusters.sums(differences)).sum(axis=1)
    together = np.where(squares > 0, together / np.where(squares > 0, squares, 1.0), 1.0)
    few = np.maximum(1 - changed / FEW_CHANGES, 0)
    sizes = np.sqrt((count - changed + 2) / (count + 2) * np.maximum(together, 1.0))
    found: Scores = sizes * (1 + (UNSEEN - 1) * few)
    return found


def _means_of_parts(sums: Scores, sizes: Scores, unseen: Scores, splits: int, seed: int) -> Iterator[Parts]:
    """Yield the lower and the upper one of the mean differences of both parts of each split.

    Args:
        sums: Sums of the differences of M clusters, (S, M).
        sizes: Number of examples of each cluster, (M,).
        unseen: Size of the two unseen changes, (S,).
        splits: Number of random splits.
        seed: Seed of the splits.

    Yields:
        Means in blocks, (S, r) each. A split with an empty part contains every value.
    """
    values = np.concatenate([sums, unseen[:, None], -unseen[:, None]], axis=1)  # (S, M + 2)
    counts = np.concatenate([sizes, [0.0, 0.0]])
    total, examples = sums.sum(axis=1, keepdims=True), sizes.sum()
    for part in _splits(len(counts), splits, seed):  # (r, M + 2) float32, 0 or 1
        inside, size = values @ part.T, part @ counts  # (S, r), (r,)
        empty = (size == 0) | (size == examples)
        one = inside / np.where(empty, 1.0, size)
        other = (total - inside) / np.where(empty, 1.0, examples - size)
        yield np.where(empty, -np.inf, np.minimum(one, other)), np.where(empty, np.inf, np.maximum(one, other))


def _splits(count: int, splits: int, seed: int) -> Iterator[Scores]:
    """Yield splits of `count` units into two parts, in blocks (r, count) of zeros and ones.

    Few units have all their splits enumerated; otherwise the splits are random, and the first one has an empty part.
    """
    if count <= ENUMERATED + 2:
        yield ((np.arange(2**count)[:, None] >> np.arange(count)) & 1).astype(np.float64)
        return
    yield np.zeros((1, count))
    generator = np.random.default_rng(seed)
    block = max(1, 4_000_000 // count)  # bounds the memory
    for start in range(0, splits, block):
        yield generator.integers(0, 2, (min(block, splits - start), count), dtype=np.int8).astype(np.float64)


def _p_values(parts: Iterable[Parts]) -> Scores:
    """Return the share of splits with 0 between both means, (S,)."""
    counted = [(((low <= ROUNDING) & (high >= -ROUNDING)).sum(axis=1), low.shape[1]) for low, high in parts]
    found: Scores = np.sum([count for count, _ in counted], axis=0) / sum(splits for _, splits in counted)
    return found


def holm(p_values: Scores) -> Scores:
    """Return the p-values of a family after Holm's step-down correction, (S,), in the same order."""
    order = np.argsort(p_values, kind="stable")
    count = len(p_values)
    ascending = np.maximum.accumulate(p_values[order] * (count - np.arange(count)))
    result = np.empty(count)
    result[order] = np.minimum(ascending, 1.0)
    return result


def partial_conjunction(p_values: Scores, alpha: float) -> int:
    """Return the largest K for which "at least K hypotheses are false" holds at level alpha; 0 if none does.

    The p-value of K among n hypotheses is (n - K + 1) p_(K), valid for any dependence. Testing K = 1, 2, ... in order
    needs no further correction.

    Source: Benjamini and Heller 2008, Screening for partial conjunction hypotheses, with Bonferroni's combination.

    Args:
        p_values: One p-value for each hypothesis, (n,).
        alpha: Significance level.
    """
    ordered = np.sort(p_values)
    holds = (len(ordered) - np.arange(len(ordered))) * ordered <= alpha
    return int(np.argmin(holds)) if not holds.all() else len(ordered)


def recovered_shares(
    systems: Scores, clean: Scores, empty: Scores, seed: int, clusters: SampledClusters | None = None
) -> list[tuple[float | None, Interval | None]]:
    """Return (score - empty) / (clean - empty) of each system with its 95% bootstrap interval over examples.

    Both are None unless the mean of clean is above the mean of empty in at least 97.5% of the resamples. The interval
    is None for fewer than FEW clusters, which are too few to resample a ratio.

    Args:
        systems: Scores of S systems on N examples, (S, N).
        clean: Scores of the clean control on the same examples, (N,).
        empty: Scores of the empty context on the same examples, (N,).
        seed: Seed of the resampling.
        clusters: SampledClusters of the examples, which are resampled; None: each example is a cluster of its own.
    """
    sampled = SampledClusters.single(len(clean)) if clusters is None else clusters
    headroom = float(clean.mean() - empty.mean())
    means = sampled.resampled_means(np.vstack([systems, clean, empty]), seed)
    headrooms = means[-2] - means[-1]  # (R,)
    if headroom <= 0 or np.quantile(headrooms, 0.025) <= 0:
        return [(None, None)] * len(systems)
    usable = headrooms > 0
    found: list[tuple[float | None, Interval | None]] = []
    for system, resampled in zip(systems, means, strict=False):
        share = float(system.mean() - empty.mean()) / headroom
        if sampled.count < FEW:
            found.append((share, None))
            continue
        low, high = np.quantile((resampled - means[-1])[usable] / headrooms[usable], [0.025, 0.975])
        found.append((share, (float(low), float(high))))
    return found
