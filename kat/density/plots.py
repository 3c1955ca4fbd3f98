"""The plot of sampling weights, density.png. Main entry: `plot_weights()`."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from kat.density.diagnostics import mass_by_decile
from latentwire.harness.palette import BLUE, GREY
from latentwire.harness.results import open_atomically, writing


def plot_weights(density: Tensor, weights: Tensor, path: Path) -> None:
    """Draw the histogram of the weights next to the mass of each tenth of the prompts.

    Args:
        density: The density of each prompt, (N,).
        weights: The sampling weights, (N,), sum 1.
        path: The PNG file, written completely or not at all.
    """
    figure = Figure(figsize=(10, 3.8), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.hist((weights * len(weights)).numpy(), bins=60, color=BLUE)
    left.axvline(1, color=GREY, linestyle="--", linewidth=1)
    left.set(xlabel="weight, times uniform", ylabel="prompts", title="Sampling weights", yscale="log")
    mass = mass_by_decile(density, weights)
    right.bar(range(1, len(mass) + 1), mass, color=BLUE)
    right.axhline(1 / len(mass), color=GREY, linestyle="--", linewidth=1)
    right.set(xlabel="tenth of the prompts, most crowded first", ylabel="share of draws", title="Draws by density")
    right.set_xticks(range(1, len(mass) + 1))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    with open_atomically(path) as file, writing(path):
        figure.savefig(file, format="png")
