"""Drawing of the atlas from its recorded figures. Main entry: `main()`.

Run it from the repository root: `python docs/scripts/draw_atlas.py`. It reads `docs/results/atlas_f1.csv` and
`docs/results/atlas_tolerance.csv` and writes `docs/images/atlas.svg`.
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

DOCS = Path(__file__).resolve().parents[1]
Matrix = dict[str, dict[str, float]]  # source -> transform -> F1

CLEAN = "text"
NOT_SINGLE = ("auto",)  # columns that are not one transform of the 35
COLOURS = {"none": "#404040", "single": "#0072B2", "auto": "#D55E00"}  # Okabe and Ito's colour-blind-safe palette
NAMES = {"none": "no repair", "single": "best single transform", "auto": "auto"}
WIDTHS = {"none": 1.8, "single": 3.6, "auto": 1.6}  # a wide line stays visible under the thin one on top of it
MARKERS = {"none": "o", "single": "s", "auto": "^"}
SHOWN_INTERVALS = {"none": "baseline", "auto": "auto"}  # curves that are one configuration have a recorded tolerance


@dataclass(frozen=True)
class Panel:
    """One family of distortions, mild on the left and severe on the right.

    Attributes:
        title: Words above the panel.
        prefix: Name of the source in front of its level.
        axis: Words below the panel.
        place: Position of a level on the axis.
        clean: Level that changes nothing, if the family has one.
        ladders: Names of the family's rows in the table of tolerances.
        hidden: Levels that have a point but no tick label.
    """

    title: str
    prefix: str
    axis: str
    place: Callable[[float], float] = float
    clean: float | None = None
    ladders: tuple[str, ...] = ()
    hidden: tuple[float, ...] = ()


PANELS = (
    Panel("White noise", "noisy", "signal-to-noise ratio, dB", lambda level: -level, None, ("noisy",)),
    Panel("Wrong length", "scaled", "factor", math.log10, 1.0, ("scaled up", "scaled down")),
    Panel("Shift", "shifted", "offset in token norms", float, 0.0, ("shifted",), (0.5,)),
    Panel("Random token mixed in", "mixed", "share of the random token", float, 0.0, ("mixed",)),
    Panel("Lengths differ by token", "token_scale", "log standard deviation", float, 0.0, ("token_scale",)),
    Panel("Gains differ by dimension", "anisotropic", "log standard deviation", float, 0.0, ("anisotropic",)),
    Panel("Bottleneck", "low_rank", "components kept of 576", lambda level: -math.log2(level), None, ("low_rank",)),
)


def read_matrix(path: Path) -> Matrix:
    """Return F1 by source and transform; the cell of a configuration that failed is empty and left out.

    Args:
        path: CSV with one row for each source and one column for each transform.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {row.pop("source"): {name: float(f1) for name, f1 in row.items() if f1} for row in rows}


def read_tolerances(path: Path) -> dict[tuple[str, str], tuple[float, float]]:
    """Return the ends of each recorded interval by ladder and transform.

    Args:
        path: CSV with the columns ladder, transform, mild_end and severe_end; an end may also be a word.
    """
    found = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            try:
                found[row["ladder"], row["transform"]] = float(row["mild_end"]), float(row["severe_end"])
            except ValueError:  # beyond or before the measured levels: there is nothing to draw
                continue
    return found


def curve_values(cells: dict[str, float]) -> dict[str, float]:
    """Return the F1 of the three curves at one source."""
    single = max(f1 for name, f1 in cells.items() if name not in NOT_SINGLE)
    return {"none": cells["baseline"], "single": single, "auto": cells["auto"]}


def draw(matrix: Matrix, tolerances: dict[tuple[str, str], tuple[float, float]]) -> Figure:
    """Return the picture: a panel for each family of distortions and one for the rotation."""
    figure = Figure(figsize=(11.5, 6.0), facecolor="white")
    axes = figure.subplots(2, 4, sharey=True).flatten()
    for panel, ax in zip(PANELS, axes, strict=False):
        _draw_panel(ax, panel, matrix, tolerances)
    _draw_rotation(axes[-1], matrix)
    clean = matrix[CLEAN]["baseline"]
    for place, ax in enumerate(axes):
        ax.axhline(clean, color="#888888", linewidth=0.9, linestyle="--", zorder=0)
        ax.axhline(clean / 2, color="#bbbbbb", linewidth=0.8, linestyle=":", zorder=0)
        ax.set_ylim(-0.03, 0.85)
        ax.set_yticks([0, 0.2, 0.4, 0.6, 0.8], ["0", ".2", ".4", ".6", ".8"])
        ax.tick_params(labelsize=10)
        ax.spines[["top", "right"]].set_visible(False)
        if place % 4 == 0:
            ax.set_ylabel("F1", fontsize=12)
    handles = [
        Line2D([], [], color=COLOURS[key], marker=MARKERS[key], markersize=7, linewidth=WIDTHS[key], label=NAMES[key])
        for key in ("none", "single", "auto")
    ]
    handles.append(Line2D([], [], color="#888888", linestyle="--", label=f"clean text, {clean:.3f}".replace("0.", ".")))
    handles.append(Line2D([], [], color="#bbbbbb", linestyle=":", label="half of it (bars: 95% intervals)"))
    figure.legend(handles=handles, loc="upper center", ncols=5, frameon=False, fontsize=11)
    figure.tight_layout(rect=(0, 0, 1, 0.94), h_pad=1.8, w_pad=1.0)
    return figure


def _draw_panel(ax: Axes, panel: Panel, matrix: Matrix, tolerances: dict[tuple[str, str], tuple[float, float]]) -> None:
    """Draw the curves of one family and the intervals of where they fall to half."""
    levels = {_level(source, panel.prefix): source for source in matrix if _is_of(source, panel.prefix)}
    if panel.clean is not None:
        levels[panel.clean] = CLEAN
    ordered = sorted(levels, key=panel.place)
    places = [panel.place(level) for level in ordered]
    values = [curve_values(matrix[levels[level]]) for level in ordered]
    for key in ("none", "single", "auto"):
        ax.plot(
            places, [value[key] for value in values], color=COLOURS[key], marker=MARKERS[key], linewidth=WIDTHS[key],
            markersize=7, markeredgecolor="white", markeredgewidth=0.7, clip_on=False,
        )  # fmt: skip
    for key, transform in SHOWN_INTERVALS.items():
        for ladder in panel.ladders:
            if (ladder, transform) in tolerances:
                _draw_interval(ax, [panel.place(end) for end in tolerances[ladder, transform]], matrix, COLOURS[key])
    labelled = [level for level in ordered if level not in panel.hidden]
    ax.set_xticks([panel.place(level) for level in labelled], [_text(level) for level in labelled])
    ax.set_title(panel.title, fontsize=12)
    ax.set_xlabel(panel.axis, fontsize=10.5)


def _draw_interval(ax: Axes, ends: list[float], matrix: Matrix, colour: str) -> None:
    """Draw a recorded interval of the level at which F1 falls to half of the clean score."""
    half = matrix[CLEAN]["baseline"] / 2
    low, high = sorted(ends)
    ax.errorbar((low + high) / 2, half, xerr=(high - low) / 2, color=colour, linewidth=2.4, capsize=4, zorder=5)


def _draw_rotation(ax: Axes, matrix: Matrix) -> None:
    """Draw the one source without a level: three points side by side."""
    for place, (key, value) in enumerate(curve_values(matrix["rotated"]).items()):
        ax.plot([place], [value], color=COLOURS[key], marker=MARKERS[key], markersize=9, clip_on=False)
    ax.set_xticks([0, 1, 2], ["no\nrepair", "best\nsingle", "auto"])
    ax.set_xlim(-0.6, 2.6)
    ax.set_title("Random rotation", fontsize=12)


def _is_of(source: str, prefix: str) -> bool:
    """Return whether a source is `prefix` followed by a level."""
    rest = source.removeprefix(prefix).removesuffix("dB")
    return source.startswith(prefix) and rest.replace(".", "", 1).lstrip("-").isdigit()


def _level(source: str, prefix: str) -> float:
    """Return the level in the name of a source: noisy-3.0dB -> -3."""
    return float(source.removeprefix(prefix).removesuffix("dB"))


def _text(level: float) -> str:
    """Return a level as a short label."""
    return f"{level:g}".replace("0.", ".", 1) if 0 < abs(level) < 1 else f"{level:g}"


def main() -> None:
    """Draw the picture from the recorded tables."""
    matrix = read_matrix(DOCS / "results" / "atlas_f1.csv")
    tolerances = read_tolerances(DOCS / "results" / "atlas_tolerance.csv")
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS / "images" / "atlas.svg"
    mpl.rcParams["svg.hashsalt"] = "atlas"  # the same bytes each time
    draw(matrix, tolerances).savefig(target, dpi=150, metadata={"Date": None} if target.suffix == ".svg" else None)
    print(target)


if __name__ == "__main__":
    main()
