"""The charts of the verdict as PNG files. Main entry: `draw_figures()`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kat.collapse.page import LIGHT, LIGHT_ARMS
from kat.collapse.records import ChartBlock, CollapseResult, ForestBlock
from latentwire.harness.results import open_atomically, writing

MARKERS = "osD^vP*Xh"
DASHES = ("-", "--", "-.", ":")


def draw_figures(result: CollapseResult, folder: Path) -> list[Path]:
    """Draw each chart of the page into a PNG file of the folder, and return the files.

    Args:
        result: The content of verdict.json.
        folder: Folder of the pictures.
    """
    arms = result["arms"]
    found = []
    for block in (block for section in result["sections"] for block in section["blocks"]):
        if block["kind"] != "chart" and block["kind"] != "forest":
            continue
        figure = Figure(figsize=(7.2, 4.2), dpi=120, layout="constrained")
        axes = figure.subplots()
        if block["kind"] == "chart":
            _chart(axes, block, arms)
        else:
            _forest(axes, block, arms)
        axes.set_title(block["title"], fontsize=9, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        path = folder / f"{block['name']}.png"
        with open_atomically(path) as file, writing(path):
            figure.savefig(file, format="png")
        found.append(path)
    return found


def _chart(axes: Axes, block: ChartBlock, arms: list[str]) -> None:
    for series in block["series"]:
        number = arms.index(series["name"])
        colour, marker = LIGHT_ARMS[number % len(LIGHT_ARMS)], MARKERS[number % len(MARKERS)]
        points = series["points"]
        x, y = [point["x"] for point in points], [point["y"] for point in points]
        line = DASHES[number % len(DASHES)] if block["shape"] == "line" else "none"
        axes.plot(x, y, linestyle=line, marker=marker, markersize=4, color=colour, linewidth=1.3, label=series["name"])
        ends = np.array([point["interval"] or (point["y"], point["y"]) for point in points])
        if block["shape"] == "line" and len(points):
            axes.fill_between(x, ends[:, 0], ends[:, 1], color=colour, alpha=0.1, linewidth=0)
    if block.get("doubling", False):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.2g}")
    axes.set_xlabel(block["x"])
    axes.set_ylabel(block["y"])
    axes.legend(fontsize=7, frameon=False)


def _forest(axes: Axes, block: ForestBlock, arms: list[str]) -> None:
    names = [entry["name"] for entry in block["entries"]]
    if block["margin"] is not None:
        axes.axvspan(
            -block["margin"], block["margin"], color=LIGHT["line"], alpha=0.6, label="no difference that matters"
        )
        axes.legend(fontsize=7, frameon=False)
    axes.axvline(0, color=LIGHT["soft"], linewidth=1)
    for row, entry in enumerate(block["entries"]):
        number = arms.index(entry["name"])
        colour = LIGHT_ARMS[number % len(LIGHT_ARMS)]
        axes.plot(entry["interval"], [-row, -row], color=colour, linewidth=2)
        axes.plot(entry["difference"], -row, MARKERS[number % len(MARKERS)], color=colour)
    axes.set_yticks([-row for row in range(len(names))], names)
    axes.set_ylim(0.5 - len(names), 0.5)
    axes.set_xlabel(block["x"])
