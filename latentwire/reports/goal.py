"""The check of the automatic repair as text. Main entries: `render_goal()` and `goal_lines()`."""

from __future__ import annotations

import textwrap

from latentwire.analysis.records import AutoGoal, AutoSource, Share
from latentwire.records import ShownMetric
from latentwire.stats.formatting import format_score

WIDTH = 5  # characters of a score


def render_goal(auto: AutoGoal, metric: ShownMetric) -> list[str]:
    """Return lines with the goal of the automatic repair: each source, failures, and harm on clean text.

    Args:
        auto: Return value of `judge_auto`.
        metric: Metric of its scores.
    """
    lines = [
        "",
        f"=== the goal of auto: {auto['share_wanted']:.0%} of the clean {metric['label']}, if one transform has it ===",
        "",
    ]
    width = max(6, *(len(one["group"]) for one in auto["sources"]))
    lines.append(f"{'source':{width}}    n  clean  best single  {'':{WIDTH + 15}}auto")
    for one in auto["sources"]:
        if one["reason"] is not None or one["best_share"] is None or one["auto_share"] is None:
            text = f"{one['group']:{width}}  undecided: {one['reason']}"
            lines += textwrap.wrap(text, 100, subsequent_indent=" " * (width + 2))
            continue
        clean = "" if one["clean_score"] is None else format_score(one["clean_score"])
        lines.append(
            f"{one['group']:{width}} {one['num_samples']:4}  {clean:{WIDTH}}  {_share(one['best_share']):25}  "
            f"{_share(one['auto_share']):25}  {goal_on(one)}"
        )
    return [*lines, "", *(part for line in goal_lines(auto, metric) for part in textwrap.wrap(line, 100))]


def _share(share: Share) -> str:
    """Return a score with its share of the clean score, and whether it reaches the wanted share."""
    return f"{format_score(share['score']):{WIDTH}} {share['share']:4.0%} {share['reached']}"


def goal_on(one: AutoSource) -> str:
    """Return whether the goal is met on a source, in words."""
    if one["met"] is not None:
        return one["met"]
    if one["best_share"] is None or one["auto_share"] is None:
        return "undecided"
    alone = one["best_share"]["reached"] == "not met" and one["auto_share"]["reached"] == "met"
    return "by auto alone" if alone else "not recovered" if one["best_share"]["reached"] == "not met" else "undecided"


def goal_lines(auto: AutoGoal, metric: ShownMetric) -> list[str]:
    """Return the verdict on the automatic repair in sentences: met or not, failures, harm and definition.

    Args:
        auto: Return value of `judge_auto`.
        metric: Metric of its scores.
    """
    score = metric["label"]
    words = {"met": "The goal is met", "not met": "The goal is NOT met", "undecided": "The goal is undecided"}
    recovered = f"{len(auto['recovered'])} sources that a single transform recovers"
    lines = [f"{words[auto['met']]}: auto reaches {auto['share_wanted']:.0%} of the clean {score} on "
             f"{len(auto['reached'])} of the {recovered}."]  # fmt: skip
    if auto["failed"]:
        lines.append(f"It fails on: {', '.join(auto['failed'])}.")
    if auto["auto_alone"]:
        lines.append(f"Beyond the goal, auto alone reaches that share on: {', '.join(auto['auto_alone'])}.")
    for one in auto["harm"]:
        low, high = one["difference_interval"]
        lines.append(
            f"Harm on clean text ({one['group']}, n={one['num_samples']}): {score} {format_score(one['difference'])} "
            f"[{format_score(low)}, {format_score(high)}] against the baseline, at most {auto['harm_allowed']:g} "
            f"allowed: {one['met']}."
        )
    return [*lines, auto["definition"]]
