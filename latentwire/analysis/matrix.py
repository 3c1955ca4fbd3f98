"""The atlas: F1 of each transform on each source, as a matrix. Main entry: `make_atlas()`."""

from __future__ import annotations

from typing import Any

import numpy as np

from latentwire.analysis.controls import ById, is_supervised
from latentwire.analysis.tolerance import Result, tolerances


def make_atlas(results: list[Result], groups: list[dict[str, Any]], scores: dict[str, ById]) -> dict[str, Any]:
    """Return the results of several sources as one matrix.

    Args:
        results: Successful results, in the order run.
        groups: Analysis of each source.
        scores: Example ids and F1 of each result and control, by its name.

    Returns:
        A dict of plain values:
        sources, transforms: Labels of the rows and columns, in the order run.
        matrix: A cell for each source and transform with F1, recovered share and verdict, or None.
        columns: The best configuration of each family.
        tolerance: Return value of `tolerances`.
    """
    of_group = {result["group"]: result for result in reversed(results)}
    sources = [
        {key: of_group[group["group"]].get(key, "") for key in ("group", "source", "source_dials", "variant")}
        for group in groups
    ]
    transforms = {
        result["experiment"]: {key: result[key] for key in ("experiment", "family", "dials")}
        | {"supervised": is_supervised(result)}
        for result in results
    }
    cells = {(group["group"], row["experiment"]): _cell(row) for group in groups for row in group["ranking"]}
    matrix = [[cells.get((source["group"], experiment)) for experiment in transforms] for source in sources]
    return {
        "sources": sources,
        "transforms": list(transforms.values()),
        "matrix": matrix,
        "columns": _columns(list(transforms.values()), matrix),
        "tolerance": tolerances(results, groups, scores),
    }


def _cell(row: dict[str, Any]) -> dict[str, Any]:
    keys = ("name", "f1", "f1_interval", "num_samples", "recovered", "recovered_interval", "verdict")
    return {key: row[key] for key in keys}


def _columns(transforms: list[dict[str, Any]], matrix: list[list[Any]]) -> list[str]:
    """Return the configuration of each family with the highest mean F1 over the sources, in the order run.

    Configurations on more sources come first. Supervised configurations form families of their own.
    """
    best: dict[tuple[str, bool], tuple[tuple[int, float], str]] = {}
    for column, transform in enumerate(transforms):
        f1s = [row[column]["f1"] for row in matrix if row[column] is not None]
        score = (len(f1s), float(np.mean(f1s)))
        family = transform["family"], transform["supervised"]
        if family not in best or score > best[family][0]:
            best[family] = (score, transform["experiment"])
    return [experiment for _, experiment in best.values()]


def matrix_table(atlas: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Return the names of the columns and the rows of a table with one row for each cell of the matrix."""
    columns = ["source", "transform", "family", "supervised", "f1", "f1_low", "f1_high", "num_samples", "recovered",
               "recovered_low", "recovered_high", "verdict"]  # fmt: skip
    rows = [
        [source["group"], transform["experiment"], transform["family"], transform["supervised"], cell["f1"],
         *cell["f1_interval"], cell["num_samples"], cell["recovered"],
         *(cell["recovered_interval"] or (None, None)), cell["verdict"]]
        for source, cells in zip(atlas["sources"], atlas["matrix"], strict=True)
        for transform, cell in zip(atlas["transforms"], cells, strict=True)
        if cell is not None
    ]  # fmt: skip
    return columns, rows
