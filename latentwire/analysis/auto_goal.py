"""The goal of the automatic repair, judged: what it brings back where a single transform can, and its harm on text."""

from __future__ import annotations

from typing import Any

import numpy as np

from latentwire.analysis.controls import RANDOM, SEED, ById, common, scores_on
from latentwire.stats.comparison import paired_bootstrap
from latentwire.stats.intervals import FEW, Interval, Scores, resampled_means

SHARE = 0.9  # of the clean F1 that auto is to reach wherever a single transform does
HARM = 0.01  # F1 that it may cost on clean text
DEFINITION = (
    f"Recovered is a source on which a single transform (no chain, no control; nothing at all counts as one) reaches "
    f"{SHARE:.0%} of the clean F1 on the same examples; the goal is met there where auto does too. "
    f"On clean text it may cost {HARM:g} against the baseline."
)
BIAS = (
    "The best of many single transforms is picked on the examples that score it: its F1 is too high on average, and "
    "some sources count as recovered by luck."
)
NOT_SINGLE = ("auto", "chain", RANDOM)


def judge_auto(groups: list[dict[str, Any]], scores: dict[str, ById]) -> dict[str, Any] | None:
    """Judge the automatic repair source by source; None where no source was asked with it.

    Args:
        groups: The analysis of each source.
        scores: Ids and per-example F1 of each result and control, by its name.

    Returns:
        The definition; for each source the best single transform, auto's F1 and its share of the clean F1 with a 95%
        interval (paired bootstrap over the examples that all of them answered), whether it is recovered and met, or
        the reason why that cannot be told; the harm on clean text; the counts; and `met`, None where nothing tells.
    """
    asked = [(group, row) for group in groups for row in group["ranking"] if row["family"] == "auto"]
    if not asked:
        return None
    sources = [_source(group, row["name"], scores) for group, row in asked]
    on_text = [_harm(group, row["name"], scores) for group, row in asked if group["source"] == "text"]
    harm = [one for one in on_text if one is not None]
    recovered = [source for source in sources if source["recovered"]]
    failed = [source["group"] for source in recovered if not source["met"]]
    judged = [source["met"] for source in recovered] + [one["met"] for one in harm]
    return {
        "share_wanted": SHARE,
        "harm_allowed": HARM,
        "definition": DEFINITION,
        "bias": BIAS,
        "sources": sources,
        "recovered": len(recovered),
        "reached": len(recovered) - len(failed),
        "failed": failed,
        "alone": [source["group"] for source in sources if source["alone"]],
        "harm": harm,
        "met": all(judged) if recovered and harm else None,
    }


def _source(group: dict[str, Any], auto: str, scores: dict[str, ById]) -> dict[str, Any]:
    """Return what auto brings back on one source beside the best single transform."""
    found: dict[str, Any] = {
        "group": group["group"], "num_samples": None, "clean_f1": None, "best": None, "best_f1": None,
        "best_share": None, "auto": auto, "auto_f1": None, "share": None, "share_interval": None,
        "recovered": None, "met": None, "alone": None, "clear": None, "reason": group["reason"],
    }  # fmt: skip
    single = [row for row in group["ranking"] if row["family"] not in NOT_SINGLE and not row["supervised"]]
    if group["controls"] is None or not single:
        return found | {"reason": "there is no " + ("clean control" if single else "single transform") + " beside it"}
    best = single[0]  # of those asked the most examples the one with the highest F1
    clean = group["controls"]["clean"]["name"]
    ids = common([auto, clean, best["name"]], scores)
    if not ids:
        return found | {"reason": "auto, the clean control and the best single transform share no examples"}
    table = np.stack([scores_on(ids, scores[name]) for name in (auto, clean, best["name"])])
    auto_f1, clean_f1, best_f1 = (float(f1) for f1 in table.mean(axis=1))
    found |= {"num_samples": len(ids), "clean_f1": clean_f1, "best": best["experiment"], "best_f1": best_f1,
              "auto_f1": auto_f1}  # fmt: skip
    if group["reason"] is not None or clean_f1 == 0:
        return found | {"reason": group["reason"] or "the clean control scores nothing on these examples"}
    share, recovered = auto_f1 / clean_f1, _reaches(best_f1, clean_f1)
    reaches = _reaches(auto_f1, clean_f1)
    met = reaches if recovered else None
    interval = _share_interval(table[:2])
    return found | {
        "best_share": best_f1 / clean_f1,
        "share": share,
        "share_interval": interval,
        "recovered": recovered,
        "met": met,
        "alone": reaches and not recovered,  # beyond the goal: auto has it where no single transform does
        "clear": None if met is None or interval is None else (interval[0] >= SHARE) if met else interval[1] < SHARE,
    }


def _reaches(f1: float, clean_f1: float) -> bool:
    return f1 >= SHARE * clean_f1 - 1e-12


def _share_interval(table: Scores) -> Interval | None:
    """Return the 95% interval of the ratio of two means over the same examples, (2, N); None for too few."""
    if table.shape[1] < FEW:
        return None
    own, clean = resampled_means(table, SEED)  # (R,) each
    low, high = np.quantile(own[clean > 0] / clean[clean > 0], [0.025, 0.975])
    return float(low), float(high)


def _harm(group: dict[str, Any], auto: str, scores: dict[str, ById]) -> dict[str, Any] | None:
    """Return the difference of auto from the baseline on clean text, or None where there is no baseline."""
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
