"""The atlas: the score of each transform on each source, as a matrix. Main entry: `make_atlas()`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from latentwire.analysis.controls import Evidence, is_supervised
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
from latentwire.analysis.selected import cross_fit_columns
from latentwire.analysis.tolerance import tolerances
from latentwire.records import ScoredResult


def make_atlas(
    results: Sequence[ScoredResult],
    groups: Sequence[GroupAnalysis],
    evidence: Mapping[str, Evidence],
    ladders: Sequence[Ladder],
) -> Atlas:
    """Return the results of several sources as one matrix.

    Args:
        results: Successful results with the baselines, in the order run.
        groups: Analysis of each source.
        evidence: Controls and scores of each source.
        ladders: Ladders of the sources.
    """
    of_group = {result["group"]: result for result in reversed(results)}
    sources = [_source(of_group[group["group"]]) for group in groups]
    transforms = {result["experiment"]: _transform(result) for result in results}
    cells = {(group["group"], row["experiment"]): _cell(row) for group in groups for row in group["ranking"]}
    matrix = [[cells.get((source["group"], experiment)) for experiment in transforms] for source in sources]
    columns = _columns(list(transforms.values()), matrix)
    of_each = [evidence[source["group"]] for source in sources]
    some = of_each[0]
    return {
        "sources": sources,
        "transforms": list(transforms.values()),
        "matrix": matrix,
        "columns": columns,
        "column_scores": _column_scores(columns, list(transforms.values()), matrix, of_each),
        "tolerance": tolerances(results, groups, some.scores, ladders, some.metric),
    }


def _column_scores(
    columns: Sequence[str],
    transforms: Sequence[AtlasTransform],
    matrix: Sequence[Sequence[Cell | None]],
    evidence: Sequence[Evidence],
) -> list[list[float | None]]:
    """Return the cross-fit score of each column on each source, (sources, columns).

    It is None for a family of one configuration, and where the results of a source do not share their examples.
    """
    found: list[list[float | None]] = [[None] * len(columns) for _ in matrix]
    own = {transform["experiment"]: (transform["family"], transform["supervised"]) for transform in transforms}
    for column, experiment in enumerate(columns):
        places = [
            place for place, transform in enumerate(transforms)
            if own[transform["experiment"]] == own[experiment] and all(cells[place] is not None for cells in matrix)
        ]  # fmt: skip
        names = [[cell["name"] for place in places if (cell := cells[place]) is not None] for cells in matrix]
        scores = cross_fit_columns(names, evidence) if len(places) > 1 else None
        for source, score in enumerate(scores or []):
            found[source][column] = score
    return found


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
