"""Curves of a GRPO run. Main entry: `plot_training()`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from kat.records import HeldOutEvaluation
from latentwire.harness.palette import BLUE, GREY
from latentwire.harness.results import open_atomically, writing


def plot_training(
    steps: Sequence[Mapping[str, float]], evaluations: Sequence[HeldOutEvaluation], title: str, path: Path
) -> None:
    """Draw reward, KL divergence and entropy of each step, and reward and KL divergence of the held-out prompts.

    Args:
        steps: Rows of metrics.jsonl: step, reward, entropy and, with a reference policy, kl.
        evaluations: Rows of held_out.jsonl: step, reward, reward_interval and, with a reference policy, kl; may be
            empty.
        title: Name of the run.
        path: PNG file to write.
    """
    x = [row["step"] for row in steps]
    figure = Figure(figsize=(10, 3.2), dpi=120, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.plot(x, [row["reward"] for row in steps], color=GREY, linewidth=1, label="training prompts, each step's own")
    if evaluations:
        means = [row["reward"] for row in evaluations]
        ends = [[mean - row["reward_interval"][0], row["reward_interval"][1] - mean]
                for mean, row in zip(means, evaluations, strict=True)]  # fmt: skip
        left.errorbar([row["step"] for row in evaluations], means, yerr=list(zip(*ends, strict=True)), color=BLUE,
                      marker="o", capsize=3, label="held-out prompts, 95%")  # fmt: skip
    left.set(title="reward", xlabel="step")
    left.legend(fontsize=7, frameon=False)
    for axes, name, label in ((middle, "kl", "KL, nats a token"), (right, "entropy", "entropy, nats")):
        if name in steps[0]:
            axes.plot(x, [row[name] for row in steps], color=GREY, linewidth=1, label="each step, from the reference")
        if name == "kl" and (held_out := [(row["step"], row["kl"]) for row in evaluations if "kl" in row]):
            axes.plot(*zip(*held_out, strict=True), color=BLUE, marker="o", label="held-out prompts, from the start")
        axes.set(title=label, xlabel="step")
    if middle.lines:
        middle.legend(fontsize=7, frameon=False)
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    with open_atomically(path) as file, writing(path):
        figure.savefig(file, format="png")
