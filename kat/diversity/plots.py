"""The plot of a diversity comparison. Main entry: `plot_differences()`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kat.diversity.comparison import LEVELS
from kat.diversity.records import ArmComparison, MetricRecord, PooledComparison
from kat.diversity.report import direction
from latentwire.harness.palette import BLUE, GREY, ORANGE
from latentwire.harness.results import open_atomically, writing


def plot_differences(
    comparisons: Sequence[ArmComparison | PooledComparison],
    metrics: Mapping[str, MetricRecord],
    path: Path,
    over: str = "prompts",
) -> None:
    """Draw the differences of two arms with their intervals: one panel per metric, one line per group of prompts.

    Args:
        comparisons: The comparisons of one pair of arms, each with `group`, `form`, `prompts` and `rows`. The rows come
            from `kat.diversity.comparison.compare_arms` or `kat.diversity.verdict.pool`.
        metrics: The descriptions of the metrics.
        path: The PNG file, written completely or not at all.
        over: The unit of the intervals, for the title: prompts or runs.
    """
    forms = {"matched": (BLUE, 0.12, "o", "lengths matched"), "raw": (ORANGE, -0.12, "s", "as sampled")}
    groups = list(dict.fromkeys((each["group"], each["prompts"]) for each in comparisons))
    shown = {(row["level"], row["metric"]) for each in comparisons for row in each["rows"]}
    panels = [panel for level in LEVELS if (panel := [(level, name) for name in metrics if (level, name) in shown])]
    width = max(map(len, panels))
    figure = Figure(figsize=(2.6 * width, 2.1 * len(panels) + 0.6), dpi=120, layout="constrained")
    grid = figure.subplots(len(panels), width, squeeze=False)
    for i, keys in enumerate(panels):
        for axes in grid[i][len(keys) :]:
            axes.set_axis_off()
        for axes, (level, name) in zip(grid[i], keys, strict=False):
            for each in comparisons:
                colour, shift, marker, _ = forms[each["form"]]
                height = shift - [group for group, _ in groups].index(each["group"])
                for row in each["rows"]:
                    if (row["level"], row["metric"]) == (level, name):
                        axes.plot(row["interval"], [height, height], color=colour, linewidth=1.5)
                        axes.plot(row["difference"], height, marker, color=colour, markersize=4)
            if axes.dataLim.width == 0:  # all differences are 0, so the axis would show rounding errors
                axes.set_xlim(-1, 1)
            axes.axvline(0, color=GREY, linestyle="--", linewidth=1)
            better = {1: "(right: more diverse)", -1: "(left: more diverse)", 0: ""}[direction(metrics[name])]
            axes.set_title(f"{metrics[name]['label']}\n{better}", fontsize=8)
            axes.set_yticks([-g for g in range(len(groups))], [f"{group} ({n})" for group, n in groups], fontsize=7)
            axes.set_ylim(0.5 - len(groups), 0.5)
            axes.tick_params(axis="x", labelsize=7)
            axes.locator_params(axis="x", nbins=4)
            axes.spines[["top", "right"]].set_visible(False)
        grid[i][0].set_ylabel("\nof ".join(LEVELS[keys[0][0]].split(" of ", 1)), fontsize=8)
    marks = [
        Line2D([], [], color=colour, marker=marker, markersize=4, label=label)
        for colour, _, marker, label in forms.values()
    ]
    figure.legend(handles=marks, loc="outside lower right", ncols=2, fontsize=8, frameon=False)
    first, second = comparisons[0]["first"], comparisons[0]["second"]
    figure.suptitle(f"{second} minus {first}, 95% intervals over {over}", fontsize=10)
    with open_atomically(path) as file, writing(path):
        figure.savefig(file, format="png")
