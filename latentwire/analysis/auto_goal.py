"""Check of the goal of the automatic repair: recovery on distorted sources, harm on clean text.

Main entry: `judge_auto()`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from latentwire.analysis.controls import RANDOM, SEED, ById, common, scores_on
from latentwire.stats.comparison import paired_bootstrap
from latentwire.stats.intervals import FEW, Interval, Scores, resampled_means

SHARE = 0.9  # auto should reach this share of the clean F1 on each source where a single transform does
HARM = 0.01  # F1 that auto may cost on clean text
DEFINITION = (
    f"A source counts as recovered if a single transform reaches {SHARE:.0%} of the clean F1 on the same examples. "
    "The baseline counts as a single transform; chains and controls do not. "
    "The goal is met on a recovered source if auto reaches that share too. "
    f"On clean text auto may cost {HARM:g} F1 against the baseline."
)
BIAS = (
    "The best of many single transforms is chosen on the examples that score it. Its F1 is too high on average, and "
    "some sources count as recovered by luck."
)
NOT_SINGLE = ("auto", "chain", RANDOM)


def judge_auto(groups: list[dict[str, Any]], scores: dict[str, ById]) -> dict[str, Any] | None:
    """Check the goal of the automatic repair, source by source.

    Args:
        groups: Analysis of each source.
        scores: Example ids and F1 of each result and control, by its name.

    Returns:
        None if no source was evaluated with auto; else a dict with these values among others:
        sources: For each source the best single transform, auto's F1, and its share of the clean F1. The share has a
            95% interval, by paired bootstrap over the examples that all three answered.
            recovered and met are None if the source decides nothing; reason says why.
        harm: Differences from the baseline on clean text.
        met: Whether the goal is met; None if no source is recovered or no harm was measured.
    """
    with_auto = [(group, row) for group in groups for row in group["ranking"] if row["family"] == "auto"]
    if not with_auto:
        return None
    sources = [_source(group, row["name"], scores) for group, row in with_auto]
    on_text = [_harm(group, row["name"], scores) for group, row in with_auto if group["source"] == "text"]
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
    """Return how auto and the best single transform do on one source."""
    found: dict[str, Any] = {
        "group": group["group"], "num_samples": None, "clean_f1": None, "best": None, "best_f1": None,
        "best_share": None, "auto": auto, "auto_f1": None, "share": None, "share_interval": None,
        "recovered": None, "met": None, "alone": None, "clear": None, "reason": group["reason"],
    }  # fmt: skip
    single = [row for row in group["ranking"] if row["family"] not in NOT_SINGLE and not row["supervised"]]
    if group["controls"] is None or not single:
        missing = "clean control" if single else "single transform"
        return found | {"reason": f"the sweep has no {missing} to compare with"}
    best = single[0]  # the ranking begins with the highest F1 among results of the most examples
    clean = group["controls"]["clean"]["name"]
    ids = common([auto, clean, best["name"]], scores)
    if not ids:
        return found | {"reason": "auto, the clean control and the best single transform share no examples"}
    table = np.stack([scores_on(ids, scores[name]) for name in (auto, clean, best["name"])])
    auto_f1, clean_f1, best_f1 = (float(f1) for f1 in table.mean(axis=1))
    found |= {"num_samples": len(ids), "clean_f1": clean_f1, "best": best["experiment"], "best_f1": best_f1,
              "auto_f1": auto_f1}  # fmt: skip
    if group["reason"] is not None or clean_f1 == 0:
        return found | {"reason": group["reason"] or "the clean control has F1 0 on these examples"}
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
        "alone": reaches and not recovered,  # beyond the goal: auto reaches the share, no single transform does
        "clear": None if met is None or interval is None else (interval[0] >= SHARE) if met else interval[1] < SHARE,
    }


def _reaches(f1: float, clean_f1: float) -> bool:
    return f1 >= SHARE * clean_f1 - 1e-12


def _share_interval(table: Scores) -> Interval | None:
    """Return the 95% interval of the ratio of two mean scores, (2, N); None for too few examples."""
    if table.shape[1] < FEW:
        return None
    own, clean = resampled_means(table, SEED)  # (R,) each
    low, high = np.quantile(own[clean > 0] / clean[clean > 0], [0.025, 0.975])
    return float(low), float(high)


def _harm(group: dict[str, Any], auto: str, scores: dict[str, ById]) -> dict[str, Any] | None:
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
