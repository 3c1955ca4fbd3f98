"""Check of the goal of the automatic repair: recovery on distorted sources, harm on clean text.

Main entry: `judge_auto()`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from latentwire.analysis.controls import (
    AUTO,
    CLEAN_SOURCE,
    LARGEST,
    NOT_SINGLE,
    SEED,
    ById,
    common,
    paired,
    passages_of,
    scores_on,
)
from latentwire.analysis.records import AutoGoal, AutoSource, Decision, GroupAnalysis, Harm, RankingRow, Share
from latentwire.records import ShownMetric
from latentwire.stats.comparison import paired_differences
from latentwire.stats.intervals import Interval
from latentwire.stats.selection import cross_fit

SHARE = 0.9  # auto should reach this share of the clean score on each source where a single transform does
HARM = 0.01  # score that auto may cost on clean text


def judge_auto(groups: Sequence[GroupAnalysis], scores: dict[str, ById], metric: ShownMetric) -> AutoGoal | None:
    """Check the goal of the automatic repair, source by source.

    A statement holds ("met") if the 95% interval is above the limit, does not hold ("not met") if it is below, and is
    undecided otherwise. The best single transform is cross-fit, because it was chosen among many.

    Args:
        groups: Analysis of each source.
        scores: Scores of each result and control, by its name.
        metric: Metric of the scores.

    Returns:
        The check, or None if no source was evaluated with auto. The whole goal is not met if it is not met on one
        source or on clean text. It is met if every source that a single transform recovers is met, and clean text too.
    """
    with_auto = [(group, row) for group in groups for row in group["ranking"] if row["family"] == AUTO]
    if not with_auto:
        return None
    sources = [_source(group, row["name"], scores, metric) for group, row in with_auto]
    on_text = [_harm(group, row, scores) for group, row in with_auto if group["source"] == CLEAN_SOURCE]
    harm = [one for one in on_text if one is not None]
    recovered = [source for source in sources if _is(source["best_share"], "met")]
    failed = [source["group"] for source in recovered if source["met"] == "not met"]
    return {
        "share_wanted": SHARE,
        "harm_allowed": HARM,
        "definition": _definition(metric["label"]),
        "sources": sources,
        "recovered": [source["group"] for source in recovered],
        "reached": [source["group"] for source in recovered if source["met"] == "met"],
        "failed": failed,
        "auto_alone": [s["group"] for s in sources if _is(s["auto_share"], "met") and _is(s["best_share"], "not met")],
        "harm": harm,
        "met": _goal([source["met"] for source in recovered], [one["met"] for one in harm]),
    }


def _is(share: Share | None, decision: Decision) -> bool:
    return share is not None and share["reached"] == decision


def _goal(on_sources: Sequence[Decision | None], on_text: Sequence[Decision]) -> Decision:
    """Return whether the whole goal is met."""
    every = [*on_sources, *on_text]
    if "not met" in every:
        return "not met"
    return "met" if on_sources and on_text and all(one == "met" for one in every) else "undecided"


def _definition(score: str) -> str:
    return (
        f"A source counts as recovered if a single transform reaches {SHARE:.0%} of the clean {score}: it is chosen on "
        "half of the passages and scored on the other half, both ways. The baseline counts as a single transform; "
        f"chains and controls do not. The goal is that auto reaches {SHARE:.0%} on every recovered source, and costs "
        f"at most {HARM:g} {score} on clean text. Met and not met mean that the 95% interval is on that side."
    )


def _decided(interval: Interval) -> Decision:
    """Return whether an interval is above 0, below 0, or contains it."""
    return "met" if interval[0] >= 0 else "not met" if interval[1] < 0 else "undecided"


def _source(group: GroupAnalysis, auto: str, scores: dict[str, ById], metric: ShownMetric) -> AutoSource:
    """Return how auto and the best single transform do on one source."""
    found: AutoSource = {
        "group": group["group"], "num_samples": None, "clean_score": None, "best": None, "best_share": None,
        "auto": auto, "auto_share": None, "met": None, "reason": group["reason"],
    }  # fmt: skip
    single = [row for row in group["ranking"] if row["family"] not in NOT_SINGLE and not row["supervised"]]
    if group["controls"] is None or not single:
        missing = "clean control" if single else "single transform"
        found["reason"] = f"the sweep has no {missing} to compare with"
        return found
    clean = group["controls"]["clean"]["name"]
    # The ranking begins with the results of the most examples; the choice is among results that share all of them.
    together = [row for row in single if set(scores[row["name"]].ids) == set(scores[single[0]["name"]].ids)]
    ids = common([auto, clean, *(row["name"] for row in together)], scores)
    if not ids:
        found["reason"] = "auto, the clean control and the best single transform share no examples"
        return found
    reference = scores_on(ids, scores[clean])
    clean_score = float(reference.mean())
    found["num_samples"], found["clean_score"], found["best"] = len(ids), clean_score, together[0]["experiment"]
    if group["reason"] is None and clean_score == 0:
        found["reason"] = f"the clean control has {metric['label']} 0 on these examples"
    if found["reason"] is not None:
        return found
    found["best_share"] = _best_share(together, clean, ids, scores)
    found["auto_share"] = own = _share(auto, clean, ids, scores)
    if found["best_share"] is None:
        found["reason"] = "the examples have too few passages to choose a transform on half of them"
    elif _is(found["best_share"], "met"):
        found["met"] = own["reached"]
    return found


def _share(name: str, clean: str, ids: tuple[str, ...], scores: dict[str, ById]) -> Share:
    """Return a result's share of the clean score on the given examples."""
    own, reference = (scores_on(ids, scores[one]) for one in (name, clean))
    clusters = passages_of(ids, scores[clean])
    equal = (1 - SHARE) * reference  # difference of an answer that is as on clean text
    (above,) = paired_differences(own[None], SHARE * reference, SEED, clusters, LARGEST, unchanged=equal)
    share = float(own.mean() / reference.mean())
    return {"score": float(own.mean()), "share": share, "above": above.interval, "reached": _decided(above.interval)}


def _best_share(rows: Sequence[RankingRow], clean: str, ids: tuple[str, ...], scores: dict[str, ById]) -> Share | None:
    """Return the share of the clean score that the choice of the best row reaches; None for too few passages."""
    if len(rows) == 1:
        return _share(rows[0]["name"], clean, ids, scores)
    systems = np.stack([scores_on(ids, scores[row["name"]]) for row in rows])  # (S, N)
    reference, clusters = scores_on(ids, scores[clean]), passages_of(ids, scores[clean])
    above = cross_fit(systems, clusters, SEED, systems - SHARE * reference, (1 - SHARE) * reference)
    if above is None:
        return None
    score = above.mean + SHARE * float(reference.mean())
    share = score / float(reference.mean())
    return {"score": score, "share": share, "above": above.interval, "reached": _decided(above.interval)}


def _harm(group: GroupAnalysis, auto: RankingRow, scores: dict[str, ById]) -> Harm | None:
    """Return the difference of auto from the baseline on clean text, or None without a baseline.

    If auto returned every input bit for bit, other examples would have the same answers too. The interval is then 0.
    """
    baseline = next((row["name"] for row in group["ranking"] if row["verdict"] == "baseline"), None)
    difference = None if baseline is None else paired(auto["name"], baseline, scores)
    if baseline is None or difference is None:
        return None
    low, high = (0.0, 0.0) if auto["identity"] else difference.interval
    return {
        "group": group["group"],
        "num_samples": len(common([auto["name"], baseline], scores)),
        "difference": difference.difference,
        "difference_interval": (low, high),
        "met": _decided((low + HARM, high + HARM)),
    }
