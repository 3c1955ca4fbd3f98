"""Plots as PNG files: what sampling weights do, how training went, and how two arms differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from kat.density.diagnostics import mass_by_decile
from kat.diversity.comparison import LEVELS, METRICS
from latentwire.harness.results import open_atomically, writing

BLUE, GREY, ORANGE = "#3366aa", "#888888", "#cc6600"


def plot_weights(density: Tensor, weights: Tensor, path: Path) -> None:
    """Draw the histogram of the weights and the mass on each tenth of the prompts, side by side.

    Args:
        density: (N,).
        weights: (N,), sum 1.
        path: PNG file, written whole or not at all.
    """
    figure = Figure(figsize=(10, 3.8), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.hist((weights * len(weights)).numpy(), bins=60, color=BLUE)
    left.axvline(1, color=GREY, linestyle="--", linewidth=1)
    left.set(xlabel="weight, times uniform", ylabel="prompts", title="Sampling weights", yscale="log")
    mass = mass_by_decile(density, weights)
    right.bar(range(1, len(mass) + 1), mass, color=BLUE)
    right.axhline(1 / len(mass), color=GREY, linestyle="--", linewidth=1)
    right.set(xlabel="tenth of the prompts, most crowded first", ylabel="share of draws", title="Who is drawn")
    right.set_xticks(range(1, len(mass) + 1))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    with open_atomically(path) as file, writing(path):
        FigureCanvasAgg(figure).print_png(file)


def plot_training(
    steps: Sequence[Mapping[str, Any]], looks: Sequence[Mapping[str, Any]], title: str, path: Path
) -> None:
    """Draw reward, KL divergence and entropy over the steps of GRPO, and reward and KL of held-out prompts.

    Args:
        steps: Rows of metrics.jsonl: step, reward, entropy and, with a reference, kl.
        looks: Rows of held_out.jsonl: step, reward, reward_interval and, with a reference, kl; may be empty.
        title: Name of the run.
        path: PNG file, written whole or not at all.
    """
    at = [row["step"] for row in steps]
    figure = Figure(figsize=(10, 3.2), dpi=120, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.plot(at, [row["reward"] for row in steps], color=GREY, linewidth=1, label="training prompts, each step's own")
    if looks:
        means = [row["reward"] for row in looks]
        ends = [[mean - row["reward_interval"][0], row["reward_interval"][1] - mean]
                for mean, row in zip(means, looks, strict=True)]  # fmt: skip
        left.errorbar([row["step"] for row in looks], means, yerr=list(zip(*ends, strict=True)), color=BLUE, marker="o",
                      capsize=3, label="held-out prompts, 95%")  # fmt: skip
    left.set(title="reward", xlabel="step")
    left.legend(fontsize=7, frameon=False)
    for axes, name, words in ((middle, "kl", "KL from the start, nats a token"), (right, "entropy", "entropy, nats")):
        if name in steps[0]:
            axes.plot(at, [row[name] for row in steps], color=GREY, linewidth=1)
        if looks and name in looks[0]:
            axes.plot([row["step"] for row in looks], [row[name] for row in looks], color=BLUE, marker="o")
        axes.set(title=words, xlabel="step")
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    with open_atomically(path) as file, writing(path):
        FigureCanvasAgg(figure).print_png(file)


def plot_differences(comparisons: Sequence[Mapping[str, Any]], path: Path, over: str = "prompts") -> None:
    """Draw the differences of two arms with their intervals, a panel for each metric, a line for each group of prompts.

    Args:
        comparisons: Those of one pair of arms, of `kat.diversity.comparison.compare` or `kat.diversity.verdict.pool`, with `group`, `form`
            and `prompts`.
        path: PNG file, written whole or not at all.
        over: What the intervals are over, for the title.
    """
    forms = {"matched": (BLUE, 0.12, "o", "lengths matched"), "raw": (ORANGE, -0.12, "s", "as sampled")}
    groups = list(dict.fromkeys((each["group"], each["prompts"]) for each in comparisons))
    panels = [[key for key in METRICS if key[0] == level] for level in LEVELS]  # a row of panels for each level
    width = max(map(len, panels))
    figure = Figure(figsize=(2.6 * width, 2.1 * len(panels) + 0.6), dpi=120, layout="constrained")
    grid = figure.subplots(len(panels), width, squeeze=False)
    for i, keys in enumerate(panels):
        for axes in grid[i][len(keys) :]:
            axes.set_axis_off()
        for axes, (level, name) in zip(grid[i], keys, strict=False):
            for each in comparisons:
                colour, shift, marker, _ = forms[each["form"]]
                place = shift - [group for group, _ in groups].index(each["group"])
                for row in each["rows"]:
                    if (row["level"], row["metric"]) == (level, name):
                        axes.plot(row["interval"], [place, place], color=colour, linewidth=1.5)
                        axes.plot(row["difference"], place, marker, color=colour, markersize=4)
            if axes.dataLim.width == 0:  # nothing differs: the scale would be one of rounding errors
                axes.set_xlim(-1, 1)
            axes.axvline(0, color=GREY, linestyle="--", linewidth=1)
            better = {1: " (right: more diverse)", -1: " (left: more diverse)", 0: ""}[METRICS[level, name].direction]
            axes.set_title(f"{METRICS[level, name].label}\n{better.strip()}", fontsize=8)
            axes.set_yticks([-g for g in range(len(groups))], [f"{group} ({n})" for group, n in groups], fontsize=7)
            axes.set_ylim(0.5 - len(groups), 0.5)
            axes.tick_params(axis="x", labelsize=7)
            axes.locator_params(axis="x", nbins=4)
            axes.spines[["top", "right"]].set_visible(False)
        grid[i][0].set_ylabel("\nof ".join(LEVELS[keys[0][0]].split(" of ", 1)), fontsize=8)
    marks = [
        Line2D([], [], color=colour, marker=marker, markersize=4, label=words)
        for colour, _, marker, words in forms.values()
    ]
    figure.legend(handles=marks, loc="outside lower right", ncols=2, fontsize=8, frameon=False)
    first, second = comparisons[0]["first"], comparisons[0]["second"]
    figure.suptitle(f"{second} minus {first}, 95% intervals over {over}", fontsize=10)
    with open_atomically(path) as file, writing(path):
        FigureCanvasAgg(figure).print_png(file)
