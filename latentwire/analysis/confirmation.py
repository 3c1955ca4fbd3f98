"""Confirmation of winners on passages that took no part in the choice. Main entry: `confirmations()`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from latentwire.analysis.records import Confirmation, GroupAnalysis, RankingRow
from latentwire.stats.comparison import holm
from latentwire.stats.power import ALPHA

LEAKS = "leaks"  # kind of a finding: the score does not come from the passage


def confirmations(selecting: Sequence[GroupAnalysis], confirming: Sequence[GroupAnalysis]) -> dict[str, Confirmation]:
    """Return how the winners of a sweep do on other passages, by source.

    Each winner is compared with its baseline once. Holm's method corrects for all winners of the sweep, also for
    winners without a result on the other passages. A winner that leaks there is not confirmed.

    Args:
        selecting: Analysis of the sweep that chose the winners.
        confirming: Analysis of the sweep on the other half of the passages.
    """
    winners = {group["group"]: group["winner"] for group in selecting if group["winner"] is not None}
    found: dict[str, tuple[GroupAnalysis, RankingRow]] = {}
    for group in confirming:
        for row in group["ranking"]:
            if row["name"] == winners.get(group["group"]) and row["p_value"] is not None:
                found[group["group"]] = group, row
    p_values = np.ones(len(winners))
    p_values[: len(found)] = [row["p_value"] for _, row in found.values()]
    return {
        name: _confirmation(group, row, float(p))
        for (name, (group, row)), p in zip(found.items(), holm(p_values), strict=False)
    }


def _confirmation(group: GroupAnalysis, row: RankingRow, p_value: float) -> Confirmation:
    difference, interval = row["difference"], row["difference_interval"]
    assert difference is not None, "a row with a p-value has a difference"
    assert interval is not None, "a row with a p-value has an interval"
    return {
        "experiment": row["experiment"],
        "num_samples": row["num_samples"],
        "passages": group["passages"],
        "score": row["score"],
        "score_interval": row["score_interval"],
        "difference": difference,
        "difference_interval": interval,
        "p_value": p_value,
        "confirmed": p_value < ALPHA and difference > 0 and not any(one["kind"] == LEAKS for one in row["warnings"]),
    }
