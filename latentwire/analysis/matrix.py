"""The atlas: the score of each transform on each source, as a matrix. Main entry: `make_atlas()`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from latentwire.analysis.controls import ById, is_supervised
from latentwire.analysis.ladder import Ladder
from latentwire.analysis.records import (
    Atlas,
    AtlasSource,
    AtlasTransform,
    Cell,
    GroupAnalysis,
    RankingRow,
    Table,
)
from latentwire.analysis.tolerance import tolerances
from latentwire.records import ScoredResult, ShownMetric


def make_atlas(
    results: Sequence[ScoredResult],
    groups: Sequence[GroupAnalysis],
    scores: dict[str, ById],
    ladders: Sequence[Ladder],
    metric: ShownMetric,
) -> Atlas:
    """Return the results of several sources as one matrix.

    Args:
        results: Successful results, in the order run.
        groups: Analysis of each source.
        scores: Example ids and scores of each result and control, by its name.
        ladders: Ladders of the sources.
        metric: Metric of the scores.
    """
    of_group = {result["group"]: result for result in reversed(results)}
    sources = [_source(of_group[group["group"]]) for group in groups]
    transforms = {result["experiment"]: _transform(result) for result in results}
    cells = {(group["group"], row["experiment"]): _cell(row) for group in groups for row in group["ranking"]}
    matrix = [[cells.get((source["group"], experiment)) for experiment in transforms] for source in sources]
    return {
        "sources": sources,
        "transforms": list(transforms.values()),
        "matrix": matrix,
        "columns": _columns(list(transforms.values()), matrix),
        "tolerance": tolerances(results, groups, scores, ladders, metric),
    }


def _source(result: ScoredResult) -> AtlasSource:
    return {
        "group": result["group"],
        "source": result["source"],
        "source_dials": result["source_dials"],
        "variant": result["variant"],
    }


def _transform(result: ScoredResult) -> AtlasTransform:
    return {
        "experiment": result["experiment"],
        "family": result["family"],
        "dials": result["dials"],
        "supervised": is_supervised(result),
    }


def _cell(row: RankingRow) -> Cell:
    return {
        "name": row["name"],
        "score": row["score"],
        "score_interval": row["score_interval"],
        "num_samples": row["num_samples"],
        "recovered": row["recovered"],
        "recovered_interval": row["recovered_interval"],
        "verdict": row["verdict"],
    }


def _columns(transforms: list[AtlasTransform], matrix: list[list[Cell | None]]) -> list[str]:
    """Return the configuration of each family with the highest mean score over the sources, in the order run.

    Configurations on more sources come first. Supervised configurations form families of their own.
    """
    best: dict[tuple[str, bool], tuple[tuple[int, float], str]] = {}
    for transform, cells in zip(transforms, zip(*matrix, strict=True), strict=True):
        scores = [cell["score"] for cell in cells if cell is not None]
        rank = (len(scores), float(np.mean(scores)))
        family = transform["family"], transform["supervised"]
        if family not in best or rank > best[family][0]:
            best[family] = (rank, transform["experiment"])
    return [experiment for _, experiment in best.values()]


def matrix_table(atlas: Atlas) -> Table:
    """Return the names of the columns and the rows of a table with one row for each cell of the matrix."""
    columns = ["source", "transform", "family", "supervised", "score", "score_low", "score_high", "num_samples",
               "recovered", "recovered_low", "recovered_high", "verdict"]  # fmt: skip
    rows = [
        [source["group"], transform["experiment"], transform["family"], transform["supervised"], cell["score"],
         *cell["score_interval"], cell["num_samples"], cell["recovered"],
         *(cell["recovered_interval"] or (None, None)), cell["verdict"]]
        for source, cells in zip(atlas["sources"], atlas["matrix"], strict=True)
        for transform, cell in zip(atlas["transforms"], cells, strict=True)
        if cell is not None
    ]  # fmt: skip
    return columns, rows
