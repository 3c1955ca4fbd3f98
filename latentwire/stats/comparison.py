"""Exact match and F1 as SQuAD v1.1 scores them, intervals of means, paired comparisons and their power."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
POWER = 0.8  # the chance to see a difference that is there
ALPHA = 0.05  # the chance to see one that is not
FEW = 16  # examples; resampling fewer says too little of a ratio, or of a level between two others
POWER_FORMULA = (
    "(z(1 - alpha/2) + z(power)) sd(paired differences) / sqrt(n): normal approximation of the paired t-test"
)
Interval = tuple[float, float]
Scores = NDArray[np.float64]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower-case, strip ASCII punctuation, drop a/an/the, collapse spaces (the official v1.1 script)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, references: Iterable[str]) -> float:
    """Return 1.0 if the normalized prediction equals one of the normalized references, else 0.0."""
    return float(any(normalize_answer(prediction) == normalize_answer(reference) for reference in references))


def f1_score(prediction: str, references: Iterable[str]) -> float:
    """Return the best F1 of word multisets over the references, in [0, 1].

    As in the official script an empty prediction scores 0, also against a reference that normalizes to nothing
    (torchmetrics gives 1 there).
    """
    words = Counter(normalize_answer(prediction).split())
    best = 0.0
    for reference in references:
        expected = Counter(normalize_answer(reference).split())
        common = (words & expected).total()
        if common:
            precision, recall = common / words.total(), common / expected.total()
            best = max(best, 2 * precision * recall / (precision + recall))
    return best


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


@dataclass(frozen=True)
class Difference:
    """A paired difference of one system from another over the same examples."""

    difference: float  # mean of the per-example differences
    interval: Interval  # 95%, bootstrap over examples
    p_value: float  # two-sided, of no difference


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


def holm(p_values: Scores) -> Scores:
    """Return Holm's step-down corrected p-values of a family, in the order given."""
    order = np.argsort(p_values, kind="stable")
    count = len(p_values)
    corrected = np.maximum.accumulate(p_values[order] * (count - np.arange(count)))
    result = np.empty(count)
    result[order] = np.minimum(corrected, 1.0)
    return result


def spread(differences: Scores) -> float:
    """Return the standard deviation of paired differences, (N,); 0 where there are fewer than two."""
    return float(np.std(differences, ddof=1)) if len(differences) > 1 else 0.0


def detectable_difference(spread: float, count: int, alpha: float) -> float:
    """Return the smallest difference that `count` paired examples show with a chance of POWER (POWER_FORMULA).

    Args:
        spread: Standard deviation of the paired differences.
        count: Number of examples.
        alpha: Two-sided, of one comparison; divide it by the number of comparisons for the corrected figure, which
            is Bonferroni's and what Holm asks of the smallest p-value.
    """
    normal = NormalDist()
    return (normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(POWER)) * spread / math.sqrt(count)


def samples_needed(spread: float, difference: float, alpha: float) -> int:
    """Return how many paired examples show a difference with a chance of POWER: POWER_FORMULA solved for n."""
    return max(1, math.ceil((detectable_difference(spread, 1, alpha) / difference) ** 2 - 1e-9))


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
