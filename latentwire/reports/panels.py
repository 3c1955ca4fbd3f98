"""Panels of dials, the matrix and colours as plain values, shared by the page and the figures.

Main entries: `dial_panels()` and `matrix()`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from latentwire.analysis.records import DialValue, GroupAnalysis, RankingRow
from latentwire.reports.records import GridPanel, Line, LinesPanel, Panel, Point, ReferenceLine, SourceMatrix, Tick

LOG_FROM = 5  # the axis is logarithmic if the values of a dial span more than this factor
EDGE = 0.06  # share of the axis that is free at each end
NEAR = 0.11  # share of the axis: a label closer to the previous one is written a line lower
HEAT_TEXT_TURNS = 0.67  # share of the scale above which a cell's number has the other text colour

# Colour-blind readers can distinguish these colours (after Okabe and Ito). No figure relies on colour alone.
LIGHT = {
    "ground": "#ffffff", "ink": "#1d2126", "soft": "#5b6570", "line": "#d9dce0", "panel": "#f6f7f8",
    "better": "#0072b2", "worse": "#c65600", "noise": "#87919c", "identity": "#b9c1c9", "baseline": "#1d2126",
    "clean": "#007a5a", "empty": "#9a4a86",
    "low": "#eef3f8", "high": "#083f7e", "on-low": "#000000", "on-high": "#ffffff",
    "line-0": "#0072b2", "line-1": "#c65600", "line-2": "#007a5a", "line-3": "#9a4a86", "line-4": "#7d6200",
}  # fmt: skip
DARK = {
    "ground": "#12161b", "ink": "#e6e9ec", "soft": "#9ba6b1", "line": "#303841", "panel": "#1a2027",
    "better": "#56b4e9", "worse": "#f08a3c", "noise": "#7f8b97", "identity": "#55606b", "baseline": "#e6e9ec",
    "clean": "#3fcf9f", "empty": "#dd8fc5",
    "low": "#1b242d", "high": "#5fa3dc", "on-low": "#ffffff", "on-high": "#000000",
    "line-0": "#56b4e9", "line-1": "#f08a3c", "line-2": "#3fcf9f", "line-3": "#dd8fc5", "line-4": "#dfc04a",
}  # fmt: skip
LINES = 5  # number of colours for the lines of a panel
COLOUR_OF = {"better": "better", "worse": "worse", "identity": "identity", "baseline": "baseline"}  # others: noise


def scale_top(groups: Sequence[GroupAnalysis]) -> float:
    """Return the score at which axes and colours end: the highest interval or control, rounded up to a tenth."""
    highs = [row["score_interval"][1] for group in groups for row in group["ranking"]]
    highs += [line["score"] for group in groups for line in reference_lines(group)]
    return min(1.0, max(0.1, math.ceil(max(highs, default=0.0) * 10 - 1e-9) / 10))


def reference_lines(group: GroupAnalysis) -> list[ReferenceLine]:
    """Return the lines that bars are compared with: the baseline, the clean control and the empty context."""
    baseline = next((row for row in group["ranking"] if row["verdict"] == "baseline"), None)
    controls = group["controls"]
    lines: list[ReferenceLine] = []
    if baseline is not None:
        lines.append({"kind": "baseline", "label": "baseline", "score": baseline["score"]})
    if controls is not None:
        if baseline is not None and controls["clean"]["name"] == baseline["name"]:
            lines[0]["label"] = "baseline (clean control)"
        else:
            lines.append({"kind": "clean", "label": "clean control", "score": controls["clean"]["score"]})
        lines += [
            {"kind": "empty", "label": "empty context", "score": control["score"]}
            for control in controls["lower"]
            if control["control"] == "empty"
        ]
    return lines


def dial_panels(rows: Sequence[RankingRow], order: Sequence[str]) -> list[Panel]:
    """Return a panel for each family with a varied dial, in the order of the sweep.

    The dial with the most values is the axis. A second dial with more than two values makes a grid, such as k by
    alpha. Otherwise each combination of the other dials is a line.

    Args:
        rows: Rows of a ranking.
        order: Experiments in the order of the sweep.

    """
    families: dict[str, list[RankingRow]] = defaultdict(list)
    rank = {experiment: number for number, experiment in reversed(list(enumerate(order)))}
    for row in sorted(rows, key=lambda row: rank.get(row["experiment"], len(order))):
        families[row["family"]].append(row)
    panels: list[Panel] = []
    for family, members in families.items():
        values = {dial: _values(members, dial) for dial in members[0]["dials"]}
        varied = [dial for dial, found in values.items() if len(found) > 1]
        if not varied:
            continue
        dial = max(varied, key=lambda name: len(values[name]))
        others = [name for name in varied if name != dial]
        if len(others) == 1 and len(values[others[0]]) > 2:
            panels.append(_grid(family, members, dial, values[dial], others[0], values[others[0]]))
        else:
            panels.append(_lines(family, members, dial, values[dial], others))
    return panels


def _values(rows: list[RankingRow], dial: str) -> list[DialValue]:
    """Return the distinct values of a dial: numbers in ascending order, other values in their first order."""
    found: list[DialValue] = []
    for row in rows:
        value = _value(row, dial)
        if value not in found:
            found.append(value)
    numbers = _numbers(found)
    return found if numbers is None else [*sorted(numbers)]


def _value(row: RankingRow, dial: str) -> DialValue:
    """Return a dial of a row; a list of a plugin's dial as text."""
    value = row["dials"].get(dial)
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _numbers(values: list[DialValue]) -> list[float] | None:
    """Return the values if all are numbers, else None."""
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return numbers if len(numbers) == len(values) else None


def _grid(
    family: str, rows: list[RankingRow], dial: str, values: list[DialValue], row_dial: str, row_values: list[DialValue]
) -> GridPanel:
    cells: list[list[str | None]] = [[None] * len(values) for _ in row_values]
    for row in rows:
        cells[row_values.index(_value(row, row_dial))][values.index(_value(row, dial))] = row["name"]
    return {"family": family, "kind": "grid", "dial": dial, "values": values, "row_dial": row_dial,
            "row_values": row_values, "cells": cells}  # fmt: skip


def _lines(family: str, rows: list[RankingRow], dial: str, values: list[DialValue], others: list[str]) -> LinesPanel:
    axis, places = _places(values)
    points: dict[str, list[Point]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: values.index(_value(row, dial))):
        label = ", ".join(f"{name} {row['dials'].get(name)}" for name in others)
        points[label].append({"at": places[values.index(_value(row, dial))], "name": row["name"]})
    lines: list[Line] = [{"label": label, "points": points[label]} for label in sorted(points)]
    return {
        "family": family,
        "kind": "lines",
        "dial": dial,
        "axis": axis,
        "ticks": _ticks(places, values),
        "lines": lines,
    }


def _ticks(places: list[float], values: list[DialValue]) -> list[Tick]:
    ticks: list[Tick] = []
    for at, value in zip(places, values, strict=True):
        lower = bool(ticks) and not ticks[-1]["lower"] and at - ticks[-1]["at"] < NEAR
        ticks.append({"at": at, "value": value, "lower": lower})
    return ticks


def _places(values: list[DialValue]) -> tuple[Literal["linear", "log", "names"], list[float]]:
    """Return the kind of axis and the position of each value on it, in [0, 1]."""
    numbers = _numbers(values)
    if numbers is None:
        return "names", [EDGE + (1 - 2 * EDGE) * i / (len(values) - 1) for i in range(len(values))]
    log = numbers[0] > 0 and numbers[-1] / numbers[0] > LOG_FROM
    on = [math.log(value) if log else float(value) for value in numbers]
    return "log" if log else "linear", [EDGE + (1 - 2 * EDGE) * (x - on[0]) / (on[-1] - on[0]) for x in on]


def matrix(groups: Sequence[GroupAnalysis], order: Sequence[str]) -> SourceMatrix | None:
    """Return the matrix of transforms by sources, or None for one source.

    Args:
        groups: Analysis of each source.
        order: Experiments in the order of the sweep.
    """
    if len(groups) < 2:
        return None
    found = [{row["experiment"]: row["name"] for row in group["ranking"]} for group in groups]
    transforms = [experiment for experiment in dict.fromkeys(order) if any(experiment in names for names in found)]
    cells: list[list[str | None]] = [[names.get(experiment) for names in found] for experiment in transforms]
    return {"sources": [group["group"] for group in groups], "transforms": transforms, "cells": cells}
