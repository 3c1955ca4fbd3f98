"""Ranking of screened candidates over seeds. Main entries: `rank_candidates()`, `promoted()`, `cross_fit_mean()`.

Candidates with the same seed start from the same weights and see the same passages in the same order. Their scores are
therefore paired by seed, and each candidate is compared with the best one by differences within seeds.

The best candidate was chosen from many by the same scores. Two figures allow for this choice. The p-value of
`p_against_best()` does not count a candidate as worse only because another one was lucky. `cross_fit_mean()` scores the
choice on a seed that took no part in it; the highest mean itself is too high on average. For K equal candidates, it is
too high by the mean maximum of K normal values: 1.49 standard errors for K = 9, .86 standard deviations for 3 seeds.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from statistics import mean, stdev

import numpy as np

from latentwire.latent_training.records import AgainstBest, CandidateRow, ScreenedRun
from latentwire.stats.intervals import Scores, t_quantile
from latentwire.stats.power import ALPHA
from latentwire.stats.seeds import mean_over_seeds

ETA = 3  # a round keeps one in ETA candidates, as in Hyperband (Li et al. 2018)
TIE = 1e-12  # means that differ by less are equal
DRAWS = 20_000  # simulated screenings of equal candidates
BLOCK = 2_000_000  # numbers that are simulated at once


def rank_candidates(runs: Sequence[ScreenedRun]) -> list[CandidateRow]:
    """Return a row for each candidate, the best mean score first.

    A candidate that failed with any seed is left out, because its mean would be over fewer seeds than other means.

    Args:
        runs: Results of `run`, one for each candidate and seed.

    Returns:
        A row for each candidate without a failed run.
    """
    groups: dict[str, list[ScreenedRun]] = defaultdict(list)
    for run in runs:
        groups[run["candidate"]].append(run)
    rows: list[CandidateRow] = []
    for candidate, members in groups.items():
        if any(run["status"] != "ok" for run in members):
            continue
        scores = [float(run["score"]) for run in members]
        rows.append(
            {
                "candidate": candidate,
                "scored_by": members[0]["scored_by"],
                "mean": mean(scores),
                "interval": interval(scores),
                "scores": {str(run["seed"]): float(run["score"]) for run in members},
                "encoders": [run["encoder"] for run in members],
                "against_best": None,
            }
        )
    rows.sort(key=lambda row: (-row["mean"], row["candidate"]))
    for row in rows[1:]:
        row["against_best"] = against_best(rows[0]["scores"], row["scores"], len(rows))
    return rows


def interval(scores: list[float]) -> list[float] | None:
    """Return Student's 95% interval of a mean over seeds, clipped to [-1, 1]; None for one seed."""
    if len(scores) < 2:
        return None
    half = t_quantile(0.95, len(scores) - 1) * stdev(scores) / math.sqrt(len(scores))
    return [max(-1.0, mean(scores) - half), min(1.0, mean(scores) + half)]


def promoted(ranking: Sequence[CandidateRow]) -> list[str]:
    """Return the candidates that go on: a third, rounded up, and all that are level with the last of these.

    Args:
        ranking: Rows of `rank_candidates`, at least one.
    """
    cut = ranking[math.ceil(len(ranking) / ETA) - 1]["mean"] - TIE
    return [row["candidate"] for row in ranking if row["mean"] >= cut]


def against_best(best: dict[str, float], scores: dict[str, float], candidates: int) -> AgainstBest | None:
    """Return a candidate minus the best one over their common seeds; None without a common seed.

    The interval is Student's with a correction for skewness, `mean_over_seeds()`. For 3 to 10 seeds its coverage is
    .95 without skewness, as without the correction. With skewness it is better: .894 against .883 for 3 exponential
    values, .918 against .900 for 10. It is an interval of one difference; `p_value` allows for the choice of the best.

    Args:
        best: Scores of the best candidate by seed.
        scores: Scores of another candidate by seed.
        candidates: Number of ranked candidates, with the best one.
    """
    differences = np.array([score - best[seed] for seed, score in scores.items() if seed in best])
    n = len(differences)
    if not n:
        return None
    found: AgainstBest = {"seeds": n, "difference": float(differences.mean()), "interval": None, "p_value": None}
    if n > 1:
        (own,) = mean_over_seeds(differences[None])
        found["interval"] = list(own.interval)
        found["p_value"] = p_against_best(differences, candidates)
    return found


def p_against_best(differences: Scores, candidates: int) -> float:
    """Return the p-value of the hypothesis that a candidate is as good as the best one, which was chosen from many.

    It is the share of screenings of equal candidates in which any candidate is as far below the best one. The unit is
    the standard error of their paired difference. An equal candidate thus has p < .05 in at most 5% of screenings.

    Each pair has its own standard error. A pooled one, as in Tukey's range test, finds smaller differences, but needs
    equal variances. Candidates that fail have almost none: with 2 noisy and 7 quiet ones, and 3 seeds, Tukey's test
    separates equal candidates in 18% of screenings. This one does so in .4%.

    Args:
        differences: Candidate minus best, for each of n >= 2 common seeds, (n,).
        candidates: Number of ranked candidates, with the best one, at least 2.

    Returns:
        The p-value; 1 if all differences are equal, as no spread is known.
    """
    n = len(differences)
    if np.ptp(differences) <= TIE:
        return 1.0
    t = -float(differences.mean()) / float(differences.std(ddof=1)) * math.sqrt(n)
    reference = _largest_t(candidates, n)
    return float((DRAWS - np.searchsorted(reference, t) + 1) / (DRAWS + 1))


@lru_cache(maxsize=64)
def _largest_t(candidates: int, seeds: int) -> Scores:
    """Return the largest paired t of the best of equal candidates against the others, sorted, (DRAWS,).

    Effects of a seed that all candidates share, and the scale of the rest, cancel in t. Standard normal values suffice.
    """
    generator = np.random.default_rng(0)
    size = max(1, BLOCK // (candidates * seeds))
    found = []
    for start in range(0, DRAWS, size):
        values = generator.standard_normal((min(size, DRAWS - start), candidates, seeds))
        best = values.mean(axis=-1).argmax(axis=1)
        differences = values[np.arange(len(values)), best][:, None] - values  # (draws, K, n), zero for the best
        errors = differences.std(axis=-1, ddof=1) / math.sqrt(seeds)
        errors[np.arange(len(values)), best] = 1.0
        found.append((differences.mean(axis=-1) / errors).max(axis=1))
    return np.sort(np.concatenate(found))


def not_distinguishable(ranking: Sequence[CandidateRow]) -> list[str]:
    """Return the candidates that are not distinguishable from the best one, by `p_against_best()`."""
    rows = [(row["candidate"], row["against_best"]) for row in ranking[1:]]
    return [name for name, own in rows if own is None or own["p_value"] is None or own["p_value"] >= ALPHA]


def cross_fit_mean(ranking: Sequence[CandidateRow]) -> float | None:
    """Return the mean score of choices that were made without the seed that scores them.

    For each seed, the candidate with the highest mean over the other seeds is scored on this seed. Ties are averaged.
    With n seeds this is an unbiased score of a choice by n - 1 seeds. It is slightly too low for the choice by n. In a
    later round it is too high, because earlier rounds chose that round's candidates by all seeds.

    Args:
        ranking: Rows of `rank_candidates`.

    Returns:
        The mean over the seeds of all candidates; None for one candidate or fewer than two such seeds.
    """
    seeds = [seed for seed in ranking[0]["scores"] if all(seed in row["scores"] for row in ranking)]
    if len(ranking) < 2 or len(seeds) < 2:
        return None
    scores = np.array([[row["scores"][seed] for seed in seeds] for row in ranking])  # (K, n)
    others = (scores.sum(axis=1, keepdims=True) - scores) / (len(seeds) - 1)
    chosen = others >= others.max(axis=0) - TIE
    return float(((scores * chosen).sum(axis=0) / chosen.sum(axis=0)).mean())
