"""How much scores differ between draws of the shots and of the seeded sources. Main entry: `between_draws()`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from latentwire.analysis.records import DrawnRow, GroupAnalysis, RankingRow
from latentwire.records import ScoredResult

Place = tuple[str, str, str]  # source with its dials, other varied settings, configuration


def between_draws(results: Sequence[ScoredResult], groups: Sequence[GroupAnalysis]) -> list[DrawnRow]:
    """Return how the scores of each configuration differ between the draws of a sweep with repeats.

    All draws evaluate the same examples, so their spread comes from the shots and from the random numbers of sources
    and transforms alone. No interval over passages has it.

    Args:
        results: Successful results with the baselines.
        groups: Analysis of each source.

    Returns:
        A row for each configuration with results of several draws, in the order run.
    """
    rows = {row["name"]: (row, group) for group in groups for row in group["ranking"]}
    draws: dict[Place, dict[int, tuple[RankingRow, GroupAnalysis]]] = defaultdict(dict)
    for result in results:
        draw = result.get("draw", 0)
        others = result["variant"].removesuffix(f"@draw{draw}")
        source = json.dumps([result["source"], result["source_dials"]], sort_keys=True)
        if result["name"] in rows:
            draws[source, others, result["experiment"]][draw] = rows[result["name"]]
    return [_drawn(found) for found in draws.values() if len(found) > 1]


def _drawn(found: dict[int, tuple[RankingRow, GroupAnalysis]]) -> DrawnRow:
    """Return the row of one configuration from its rows in each draw."""
    in_order = [found[draw] for draw in sorted(found)]
    first, group = in_order[0]
    scores = [row["score"] for row, _ in in_order]
    differences = [row["difference"] for row, _ in in_order if row["difference"] is not None]
    complete = len(differences) == len(scores)
    return {
        "group": group["group"],
        "experiment": first["experiment"],
        "family": first["family"],
        "supervised": first["supervised"],
        "draws": len(scores),
        "scores": scores,
        "mean": float(np.mean(scores)),
        "spread": float(np.std(scores, ddof=1)),
        "difference": float(np.mean(differences)) if complete else None,
        "difference_spread": float(np.std(differences, ddof=1)) if complete else None,
        "better": sum(row["verdict"] == "better" for row, _ in in_order),
        "wins": sum(own["winner"] == row["name"] for row, own in in_order),
    }
