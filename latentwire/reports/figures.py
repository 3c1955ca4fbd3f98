"""Figures of the report as PNG: ranking and dials of each source, and the matrix. Main entry: `draw_all()`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from latentwire.analysis.controls import label
from latentwire.analysis.records import Analysis, DialValue, GroupAnalysis, RankingRow
from latentwire.harness.results import open_atomically, writing
from latentwire.reports.panels import (
    COLOUR_OF,
    HEAT_TEXT_TURNS,
    LINES,
    dial_panels,
    matrix,
    reference_lines,
    scale_top,
)
from latentwire.reports.panels import LIGHT as COLOURS
from latentwire.reports.records import LinesPanel, ReferenceLine
from latentwire.reports.text import CHOSEN, chosen_line, quotable
from latentwire.stats.formatting import format_score
from latentwire.stats.intervals import Interval

HEAT = LinearSegmentedColormap.from_list("heat", [COLOURS["low"], COLOURS["high"]])
STYLES = {"baseline": "-", "clean": "--", "empty": ":"}


def draw_all(analysis: Analysis, order: Sequence[str], folder: Path) -> list[Path]:
    """Write ranking_<source>.png and dials_<source>.png for each source, and matrix.png for several sources.

    Args:
        analysis: Analysis of the sweep.
        order: Experiments in the order of the sweep.
        folder: Folder of the figures; figures of an earlier report that have no successor are removed.

    Returns:
        Paths of the written figures.
    """
    groups, score = analysis["groups"], analysis["metric"]["label"]
    top = scale_top(groups)
    written = []
    for group in groups:
        part = re.sub(r"[^\w.+-]+", "_", group["group"])
        written.append(_save(ranking(group, score, top), folder / f"ranking_{part}.png"))
        figure = dials(group, order, score, top)
        if figure is not None:
            written.append(_save(figure, folder / f"dials_{part}.png"))
    figure = matrix_figure(groups, order, score, top)
    if figure is not None:
        written.append(_save(figure, folder / "matrix.png"))
    for stale in {*folder.glob("ranking_*.png"), *folder.glob("dials_*.png"), *folder.glob("matrix.png")} - {*written}:
        stale.unlink()
    return written


def ranking(group: GroupAnalysis, score: str, top: float) -> Figure:
    """Return the ranking of a source as bars with 95% intervals, coloured by verdict.

    A row that was chosen among several has its cross-fit score.
    """
    rows = group["ranking"]
    figure = Figure(figsize=(8, 1.1 + 0.21 * len(rows)), dpi=110, layout="constrained")
    axes = figure.subplots()
    places = range(len(rows))
    quoted = [quotable(row) for row in rows]
    scores = [value for value, _ in quoted]
    whiskers = _whiskers(scores, [interval for _, interval in quoted])
    colours = [COLOURS[COLOUR_OF.get(row["verdict"], "noise")] for row in rows]
    axes.barh(places, scores, color=colours, height=0.72)
    for name, width in (("ground", 3.2), ("ink", 1.2)):  # a light edge separates the interval from its bar
        axes.errorbar(scores, places, xerr=whiskers, fmt="none", ecolor=COLOURS[name], elinewidth=width)
    for line in reference_lines(group):
        axes.axvline(line["score"], color=COLOURS[line["kind"]], linestyle=STYLES[line["kind"]], linewidth=1,
                     label=f"{line['label']} {format_score(line['score'])}")  # fmt: skip
    names = [label(row) + (f" {CHOSEN}" if row["cross_fit"] else "") + _few(row, group["num_samples"]) for row in rows]
    axes.set_yticks(places, names, fontsize=8)
    how = chosen_line(rows)
    below = f"{score}, 95% interval" + ("" if how is None else f"\n{how}")
    axes.set(xlim=(0, top), ylim=(len(rows) - 0.4, -0.6), xlabel=below)
    axes.set_title(f"{group['group']}, {group['num_samples']} examples", loc="left", fontsize=10)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(fontsize=8, frameon=False, loc="outside lower right", ncols=3)  # below the bars
    _bare(axes)
    return figure


def dials(group: GroupAnalysis, order: Sequence[str], score: str, top: float) -> Figure | None:
    """Return a figure with a panel for each family whose dials vary, or None if no dial varies."""
    panels = dial_panels(group["ranking"], order)
    if not panels:
        return None
    row_of = {row["name"]: row for row in group["ranking"]}
    columns = min(3, len(panels))
    count = -(-len(panels) // columns)
    figure = Figure(figsize=(3.6 * columns, 0.4 + 2.8 * count), dpi=110, layout="constrained")
    figure.suptitle(f"{group['group']}, {group['num_samples']} examples", fontsize=10)
    grid = figure.subplots(count, columns, squeeze=False).flatten()
    for axes, panel in zip(grid, panels, strict=False):
        axes.set_title(panel["family"], loc="left", fontsize=9)
        if panel["kind"] == "grid":
            _heat(axes, _cells(panel["cells"], row_of), panel["values"], panel["row_values"], top)
            axes.set(xlabel=panel["dial"], ylabel=panel["row_dial"])
        else:
            _draw_lines(axes, panel, row_of, reference_lines(group), score, top)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    return figure


def _draw_lines(
    axes: Axes,
    panel: LinesPanel,
    row_of: dict[str, RankingRow],
    references: list[ReferenceLine],
    score: str,
    top: float,
) -> None:
    for number, line in enumerate(panel["lines"]):
        rows = [row_of[point["name"]] for point in line["points"]]
        scores = [row["score"] for row in rows]
        whiskers = _whiskers(scores, [row["score_interval"] for row in rows])
        axes.errorbar([point["at"] for point in line["points"]], scores, yerr=whiskers,
                      color=COLOURS[f"line-{number % LINES}"], marker="o", markersize=4, linewidth=1.4, capsize=2,
                      label=line["label"])  # fmt: skip
    for reference in references:
        axes.axhline(reference["score"], color=COLOURS[reference["kind"]], linestyle=STYLES[reference["kind"]],
                     linewidth=0.9)  # fmt: skip
    labels = ["\n" * tick["lower"] + str(tick["value"]) for tick in panel["ticks"]]
    axes.set_xticks([tick["at"] for tick in panel["ticks"]], labels, fontsize=8)
    axes.set(xlim=(0, 1), ylim=(0, top), xlabel=panel["dial"], ylabel=score)
    if any(line["label"] for line in panel["lines"]):
        axes.legend(fontsize=8, frameon=False)
    _bare(axes)


def matrix_figure(groups: Sequence[GroupAnalysis], order: Sequence[str], score: str, top: float) -> Figure | None:
    """Return a heat map with the score of each transform on each source, or None for one source."""
    found = matrix(groups, order)
    if found is None:
        return None
    row_of = {row["name"]: row for group in groups for row in group["ranking"]}
    transforms = [_label_of(names, row_of) for names in found["cells"]]
    size = (2.2 + 0.55 * len(found["sources"]), 1.6 + 0.24 * len(found["transforms"]))
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    axes = figure.subplots()
    _heat(axes, _cells(found["cells"], row_of), found["sources"], transforms, top)
    axes.tick_params(axis="x", rotation=60, top=True, bottom=False, labeltop=True, labelbottom=False)
    for text in axes.get_xticklabels():
        text.set(ha="left", rotation_mode="anchor")
    axes.set_title(score, loc="left", fontsize=9)
    return figure


def _few(row: RankingRow, most: int) -> str:
    """Return the number of examples of a row as text if other rows have more, else an empty text."""
    return f" n={row['num_samples']}" if row["num_samples"] < most else ""


def _cells(names: list[list[str | None]], row_of: dict[str, RankingRow]) -> list[list[RankingRow | None]]:
    return [[None if name is None else row_of[name] for name in line] for line in names]


def _label_of(names: list[str | None], row_of: dict[str, RankingRow]) -> str:
    """Return the label of a line of the matrix, from any of its cells that were run."""
    return next(label(row_of[name]) for name in names if name is not None)


def _heat(
    axes: Axes,
    cells: list[list[RankingRow | None]],
    columns: Sequence[DialValue],
    rows: Sequence[DialValue],
    top: float,
) -> None:
    """Draw a heat map with the score in each cell, and n if other cells have more examples; missing cells are blank."""
    axes.imshow([[float("nan") if cell is None else cell["score"] for cell in line] for line in cells], cmap=HEAT,
                vmin=0, vmax=top, aspect="auto")  # fmt: skip
    most = max(cell["num_samples"] for line in cells for cell in line if cell is not None)
    for y, line in enumerate(cells):
        for x, cell in enumerate(line):
            if cell is not None:
                ink = COLOURS["on-high" if cell["score"] / top > HEAT_TEXT_TURNS else "on-low"]
                few = _few(cell, most)
                axes.text(x, y, format_score(cell["score"]) + few, ha="center", va="center", fontsize=5 if few else 7,
                          color=ink)  # fmt: skip
    axes.set_xticks(range(len(columns)), [str(column) for column in columns], fontsize=8)
    axes.set_yticks(range(len(rows)), [str(row) for row in rows], fontsize=8)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    _small(axes)


def _whiskers(scores: Sequence[float], intervals: Sequence[Interval]) -> list[list[float]]:
    """Return the distances from the scores to the lower and upper ends of their intervals, (2, rows)."""
    below = [max(0.0, score - low) for score, (low, _) in zip(scores, intervals, strict=True)]
    return [below, [max(0.0, high - score) for score, (_, high) in zip(scores, intervals, strict=True)]]


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    _small(axes)


def _small(axes: Axes) -> None:
    axes.tick_params(labelsize=8)
    axes.xaxis.label.set_fontsize(8)
    axes.yaxis.label.set_fontsize(8)


def _save(figure: Figure, path: Path) -> Path:
    with open_atomically(path) as file, writing(path):
        figure.savefig(file, format="png")
    return path
