"""Check of the goal of the automatic repair: recovery on distorted sources, harm on clean text.

Main entry: `judge_auto()`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from latentwire.analysis.controls import AUTO, CLEAN_SOURCE, NOT_SINGLE, SEED, ById, common, scores_on
from latentwire.analysis.records import AutoGoal, AutoSource, GroupAnalysis, Harm
from latentwire.records import ShownMetric
from latentwire.stats.comparison import paired_bootstrap
from latentwire.stats.intervals import FEW, Interval, Scores, resampled_means

SHARE = 0.9  # auto should reach this share of the clean score on each source where a single transform does
HARM = 0.01  # score that auto may cost on clean text


def judge_auto(groups: Sequence[GroupAnalysis], scores: dict[str, ById], metric: ShownMetric) -> AutoGoal | None:
    """Check the goal of the automatic repair, source by source.

    Args:
        groups: Analysis of each source.
        scores: Example ids and scores of each result and control, by its name.
        metric: Metric of the scores.

    Returns:
        For each source the best single transform, auto's score, and its share of the clean score. The share has a 95%
        interval, by paired bootstrap over the examples that all three answered. `met` is whether the goal is met; None
        if no source is recovered or no harm was measured. None if no source was evaluated with auto.
    """
    with_auto = [(group, row) for group in groups for row in group["ranking"] if row["family"] == AUTO]
    if not with_auto:
        return None
    sources = [_source(group, row["name"], scores, metric) for group, row in with_auto]
    on_text = [_harm(group, row["name"], scores) for group, row in with_auto if group["source"] == CLEAN_SOURCE]
    harm = [one for one in on_text if one is not None]
    recovered = [source for source in sources if source["recovered"]]
    failed = [source["group"] for source in recovered if not source["met"]]
    judged = [source["met"] for source in recovered] + [one["met"] for one in harm]
    return {
        "share_wanted": SHARE,
        "harm_allowed": HARM,
        "definition": _definition(metric["label"]),
        "bias": (
            "The best of many single transforms is chosen on the examples that score it. "
            f"Its {metric['label']} is too high on average, and some sources count as recovered by luck."
        ),
        "sources": sources,
        "recovered": len(recovered),
        "reached": len(recovered) - len(failed),
        "failed": failed,
        "auto_alone": [source["group"] for source in sources if source["auto_alone"]],
        "harm": harm,
        "met": all(judged) if recovered and harm else None,
    }


def _definition(score: str) -> str:
    return (
        f"A source counts as recovered if a single transform reaches {SHARE:.0%} of the clean {score} on the same "
        "examples. The baseline counts as a single transform; chains and controls do not. "
        "The goal is met on a recovered source if auto reaches that share too. "
        f"On clean text auto may cost {HARM:g} {score} against the baseline."
    )


def _source(group: GroupAnalysis, auto: str, scores: dict[str, ById], metric: ShownMetric) -> AutoSource:
    """Return how auto and the best single transform do on one source."""
    found: AutoSource = {
        "group": group["group"], "num_samples": None, "clean_score": None, "best": None, "best_score": None,
        "best_share": None, "auto": auto, "auto_score": None, "share": None, "share_interval": None,
        "recovered": None, "met": None, "auto_alone": None, "clear": None, "reason": group["reason"],
    }  # fmt: skip
    single = [row for row in group["ranking"] if row["family"] not in NOT_SINGLE and not row["supervised"]]
    if group["controls"] is None or not single:
        missing = "clean control" if single else "single transform"
        found["reason"] = f"the sweep has no {missing} to compare with"
        return found
    best = single[0]  # the ranking begins with the highest score among results of the most examples
    clean = group["controls"]["clean"]["name"]
    ids = common([auto, clean, best["name"]], scores)
    if not ids:
        found["reason"] = "auto, the clean control and the best single transform share no examples"
        return found
    table = np.stack([scores_on(ids, scores[name]) for name in (auto, clean, best["name"])])
    auto_score, clean_score, best_score = (float(score) for score in table.mean(axis=1))
    found["num_samples"], found["clean_score"], found["auto_score"] = len(ids), clean_score, auto_score
    found["best"], found["best_score"] = best["experiment"], best_score
    if group["reason"] is not None:
        return found
    if clean_score == 0:
        found["reason"] = f"the clean control has {metric['label']} 0 on these examples"
        return found
    recovered, reaches = _reaches(best_score, clean_score), _reaches(auto_score, clean_score)
    met, interval = reaches if recovered else None, _share_interval(table[:2])
    found["best_share"], found["share"] = best_score / clean_score, auto_score / clean_score
    found["share_interval"], found["recovered"], found["met"] = interval, recovered, met
    found["auto_alone"] = reaches and not recovered  # beyond the goal
    if met is not None and interval is not None:
        found["clear"] = interval[0] >= SHARE if met else interval[1] < SHARE
    return found


def _reaches(score: float, clean_score: float) -> bool:
    return score >= SHARE * clean_score - 1e-12


def _share_interval(table: Scores) -> Interval | None:
    """Return the 95% interval of the ratio of two mean scores, (2, N); None for too few examples."""
    if table.shape[1] < FEW:
        return None
    own, clean = resampled_means(table, SEED)  # (R,) each
    low, high = np.quantile(own[clean > 0] / clean[clean > 0], [0.025, 0.975])
    return float(low), float(high)


def _harm(group: GroupAnalysis, auto: str, scores: dict[str, ById]) -> Harm | None:
    """Return the difference of auto from the baseline on clean text, or None without a baseline."""
    baseline = next((row["name"] for row in group["ranking"] if row["verdict"] == "baseline"), None)
    ids = () if baseline is None else common([auto, baseline], scores)
    if baseline is None or not ids:
        return None
    own, reference = (scores_on(ids, scores[name]) for name in (auto, baseline))
    (difference,) = paired_bootstrap(own[None], reference, SEED)
    interval = difference.interval if len(ids) >= FEW else None
    met = difference.difference >= -HARM - 1e-12
    return {
        "group": group["group"],
        "num_samples": len(ids),
        "difference": difference.difference,
        "difference_interval": interval,
        "met": met,
        "clear": None if interval is None else (interval[0] >= -HARM) if met else interval[1] < -HARM,
    }
