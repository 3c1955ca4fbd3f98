"""The analysis of a sweep as terminal text. Main entry: `render()`."""

from __future__ import annotations

import textwrap

from latentwire.analysis.controls import label
from latentwire.analysis.ranking import coverage
from latentwire.analysis.records import (
    Atlas,
    AutoGoal,
    AutoSource,
    Cell,
    ControlScore,
    GroupAnalysis,
    JoinedFinding,
    LadderTolerance,
    Power,
    RankingRow,
    Summary,
    ToleranceRow,
)
from latentwire.analysis.verdict import DEAD
from latentwire.records import Budget, ShownMetric
from latentwire.stats.formatting import format_score
from latentwire.stats.intervals import FEW as FEW_EXAMPLES

TOP = 5  # rows of a ranking above the line, or in its short form
FEW = 6  # up to this number of sources, rankings are printed whole
WIDTH = 5  # characters of a score
OTHER_SCORES = {"f1": "F1", "em": "EM"}  # shown in every ranking, next to the primary metric


def incomplete(summary: Summary) -> str | None:
    """Return a sentence that reports missing examples, which a budget can cause, or None."""
    found, budget = coverage(summary["analysis"]["groups"]), summary["budget"]
    wanted = found["most"] if budget is None else budget["wanted"]
    if not found["fewer"] and found["most"] >= wanted:
        return None
    text = f"Incomplete matrix: at most {found['most']} of {wanted} examples were evaluated"
    if found["fewer"]:
        text += (
            f", and {found['fewer']} of {found['configurations']} configurations have fewer ({found['fewest']} or "
            "more); each shows its n"
        )
    return text + "."


def render(summary: Summary) -> str:
    """Return the analysis of a sweep as text.

    Args:
        summary: Summary of the sweep, with its analysis.
    """
    analysis, metric = summary["analysis"], summary["analysis"]["metric"]
    lines = [
        "",
        f"Sweep {summary['sweep']}: {summary['total_experiments']} configurations, "
        f"{summary['successful']} successful, {summary['failed']} failed",
    ]
    lines += [f"{one['level']}: {one['message']}{_names(one)}" for one in analysis["warnings"]]
    if summary["budget"] is not None:
        lines += _render_budget(summary["budget"])
    lines += [text for text in [incomplete(summary)] if text is not None]
    for group in analysis["groups"]:
        lines += _render_group(group, metric) if len(analysis["groups"]) <= FEW else _render_briefly(group, metric)
    if analysis["atlas"] is not None:
        lines += _render_matrix(analysis["atlas"], metric) + _render_tolerance(analysis["atlas"], metric)
    if analysis["auto"] is not None:
        lines += _render_auto(analysis["auto"], metric)
    return "\n".join(lines)


def _names(warning: JoinedFinding) -> str:
    names, count = warning["names"], warning["count"]
    return f" ({', '.join(names[:3])}{f' and {count - 3} more' if count > 3 else ''})"


def _render_budget(budget: Budget) -> list[str]:
    """Return lines about the budget: its rounds, what each left out, and how it ended."""
    lines = [
        "",
        f"Budget: {budget['seconds_spent'] / 60:.1f} of {budget['minutes']:g} minutes; all {budget['configurations']} "
        f"configurations on {budget['first']} examples, in the last round {budget['samples']}",
    ]
    if (estimate := budget["estimate"]) is not None:
        lines.append(
            f"  first estimate: {estimate['seconds_per_example']:.3f} s an example, from {estimate['samples']} of "
            f"{', '.join(estimate['names'])}; measured in the last round: {budget['seconds_per_example']:.3f} s"
        )
    for halving in budget["halvings"]:
        count = sum(len(group["left_out"]) for group in halving["groups"])
        lines.append(f"  {halving['why']}; {count} left out")
    ended = budget["stopped"] or "every configuration of the last round failed"
    return [*lines, f"  ended: {ended}", f"  {budget['note']}", f"  Times: {budget['time_model']}."]


def _render_briefly(group: GroupAnalysis, metric: ShownMetric) -> list[str]:
    """Return lines with the best configurations and the verdict of one source."""
    return [
        "",
        f"=== source {group['group']}, {group['num_samples']} examples ===",
        *_render_ranking(group["ranking"][:TOP], metric),
        f"Verdict: {group['verdict']}",
    ]


def _render_group(group: GroupAnalysis, metric: ShownMetric) -> list[str]:
    rows, score = group["ranking"], metric["label"]
    lines = ["", f"=== source {group['group']}, {group['num_samples']} examples ===", ""]
    lines += _render_controls(group, score) + _render_ranking(rows, metric)
    lines += ["", "Best of each family"]
    for row in group["best_of_family"]:
        few = f"  n={row['num_samples']}" if row["num_samples"] < group["num_samples"] else ""
        lines.append(f"  {row['family']:20} {format_score(row['score'])}  {label(row)}{few}")
    if group["dial_means"]:
        lines += ["", f"Mean {score} by dial"]
        for entry in group["dial_means"]:
            means = "  ".join(f"{mean['value']}: {format_score(mean['score'])}" for mean in entry["means"])
            lines.append(f"  {entry['family'] + ' ' + entry['dial']:28} {means}")
    lines.append("")
    if group["baseline_score"] is not None:
        level = f"80% of the baseline's {score} ({format_score(0.8 * group['baseline_score'])})"
        if group["baseline_score"] < DEAD:
            level += ", which means little because the baseline scores close to 0"
        lines.append(f"{group['reached_80_percent']} of {len(rows)} reached {level}")
    lines.append(f"{group['more_than_half_empty']} of {len(rows)} gave more than 50% empty answers")
    lines += _render_power(group["power"])
    width = max(20, *(len(one["observation"]) for one in group["observations"]))
    lines += ["", f"{'Observation':{width + 2}}holds | meaning | action"]
    for one in group["observations"]:
        lines.append(f"  {one['observation']:{width}} {one['holds']} | {one['meaning']} | {one['action']}")
    lines += ["", f"Verdict: {group['verdict']}", f"Next: {group['next']}"]
    return lines


def _render_ranking(rows: list[RankingRow], metric: ShownMetric) -> list[str]:
    """Return lines with a ranking: the primary metric with its interval, then the other scores."""
    width = max(len(label(row)) for row in rows)
    wide = max(WIDTH, len(metric["label"]))
    others = {name: short for name, short in OTHER_SCORES.items() if name != metric["name"]}
    counts = {row["num_samples"] for row in rows}
    head = f"    {'':{width}}  {metric['label']:{wide}} 95% interval  "
    head += "".join(f"{short:{WIDTH}} " for short in others.values())
    lines = [f"{head}empty  recovered   against the baseline"]
    for rank, row in enumerate(rows, 1):
        if rank == TOP + 1:
            lines.append("    " + "-" * (width + wide + (WIDTH + 1) * len(others) + 54))
        low, high = row["score_interval"]
        scores = f"{format_score(row['score']):{wide}} [{format_score(low):{WIDTH}} {format_score(high):{WIDTH}}]  "
        values = {"f1": row["f1"], "em": row["em"]}
        scores += "".join(f"{format_score(values[name]):{WIDTH}} " for name in others)
        scores += f"{row['empty_rate']:4.0%}  {_percent(row['recovered']):>10}"
        few = f"n={row['num_samples']} " if len(counts) > 1 else ""
        lines.append(f"{rank:3} {label(row):{width}}  {scores}   {few}{_against(row)}")
    return lines


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _render_controls(group: GroupAnalysis, score: str) -> list[str]:
    """Return lines with the controls, and with the reason if the source cannot rank repairs."""
    if group["controls"] is None:
        return []
    lines = [f"Upper control  {_scored(group['controls']['clean'], score)}"]
    for lower in group["controls"]["lower"]:
        unclear = "" if lower["clearly_below"] else "  NOT clearly below the upper control"
        lines.append(f"Lower control  {_scored(lower, score)}{unclear}")
    if group["reason"] is not None:
        lines.append(f"Cannot be answered: {group['reason']}")
    share = f"({score} - empty) / (clean - empty)"
    return [*lines, f"recovered: share of the way from the empty passage to the clean text, {share}", ""]


def _scored(control: ControlScore, score: str) -> str:
    low, high = control["score_interval"]
    return f"{control['name']} {score} {format_score(control['score'])} [{format_score(low)}, {format_score(high)}]"


def _render_power(power: Power | None) -> list[str]:
    """Return lines with the detectable difference and the needed number of examples."""
    if power is None:
        return []
    return [
        f"{power['num_samples']} examples detect a difference of {format_score(power['detectable'])} with power "
        f"{power['power']:.0%} in one comparison, {format_score(power['detectable_corrected'])} corrected for "
        f"{power['comparisons']} comparisons",
        f"a difference of {format_score(power['target_difference'])} needs samples={power['samples_needed']}, "
        f"corrected samples={power['samples_needed_corrected']}",
    ]


def _render_matrix(atlas: Atlas, metric: ShownMetric) -> list[str]:
    """Return lines with one column for each family: its configuration with the highest mean score."""
    places = [
        place for place, transform in enumerate(atlas["transforms"]) if transform["experiment"] in atlas["columns"]
    ]
    letters = [chr(ord("a") + number) if number < 26 else f"a{number - 26}" for number in range(len(places))]
    width = max(len(source["group"]) for source in atlas["sources"])
    lines = ["", f"=== the matrix: {metric['label']} by source and transform ===", ""]
    best = f"the configuration of each family with the highest mean {metric['label']}"
    lines += [f"{best}; matrix.csv has all configurations", ""]
    lines += [f"  {letter}  {label(atlas['transforms'][place])}" for letter, place in zip(letters, places, strict=True)]
    most = max(cell["num_samples"] for cells in atlas["matrix"] for cell in cells if cell is not None)
    table = [[_cell(cells[place], most) for place in places] for cells in atlas["matrix"]]
    wide = max(5, *(len(cell) for cells in table for cell in cells)) + 1
    legend = "   * better than the baseline"
    if any("/" in cell for cells in table for cell in cells):
        legend += f"; /n: on n examples instead of {most}"
    lines += ["", f"{'':{width}}" + "".join(f"{letter:>{wide}}" for letter in letters) + legend]
    for source, shown in zip(atlas["sources"], table, strict=True):
        lines.append(f"{source['group']:{width}}" + "".join(f"{cell:>{wide}}" for cell in shown).rstrip())
    return lines


def _cell(cell: Cell | None, most: int) -> str:
    if cell is None:
        return "-"
    few = f"/{cell['num_samples']}" if cell["num_samples"] < most else ""
    return format_score(cell["score"]) + ("*" if cell["verdict"] == "better" else "" if few else " ") + few


def _render_tolerance(atlas: Atlas, metric: ShownMetric) -> list[str]:
    """Return lines with the level at which each transform falls to half of the clean score."""
    lines: list[str] = []
    for ladder in atlas["tolerance"]:
        levels = " ".join(f"{level:g}" for level in ladder["levels"])
        if any(row["anchored"] for row in ladder["transforms"]):
            levels = f"text {levels}"
        lines += [
            "",
            f"=== tolerance: {ladder['ladder']}{ladder['variant']}, {ladder['dial']} where {metric['label']} falls to "
            f"half of the clean score ({format_score(ladder['threshold'])}) ===",
            f"levels {levels} ({ladder['unit']}); 95% interval; the clean score is from the n examples of each row",
        ]
        if ladder["left_out"]:
            lines += textwrap.wrap(left_out(ladder), 100, subsequent_indent="  ")
        if ladder["reason"] is not None:
            text = f"no tolerance: {ladder['reason']}"
            lines += textwrap.wrap(text, 100, initial_indent="  ", subsequent_indent="    ")
            continue
        for row in ladder["transforms"]:
            if row["experiment"] in atlas["columns"]:
                lines.append(f"  {label(row):24} {tolerated(row):>8}  {_ends(row)}  n={row['num_samples']}")
    return lines


def left_out(ladder: LadderTolerance) -> str:
    """Return a sentence with the transforms that a ladder leaves out, or an empty text."""
    names = ladder["left_out"]
    return f"left out, because a level or common examples are missing: {', '.join(names)}" if names else ""


def tolerated(row: ToleranceRow) -> str:
    """Return the level at which a transform falls to half of the clean score, or why it has no level."""
    if row["level"] is not None:
        return f"{row['level']:.3g}"
    if row["status"] == "beyond":
        return "above half at every level"
    return "below half on clean text" if row["anchored"] else "below half at the first measured level"


def _ends(row: ToleranceRow) -> str:
    if row["interval"] is None:
        return f"no interval below {FEW_EXAMPLES} examples"
    words = {"beyond": "after the last", "before": "before the first"}
    ends = [words.get(end["status"], "") or f"{end['level']:.3g}" for end in row["interval"]]
    return f"[{', '.join(ends)}]"


def _render_auto(auto: AutoGoal, metric: ShownMetric) -> list[str]:
    """Return lines with the goal of the automatic repair: each source, failures, and harm on clean text."""
    score = metric["label"]
    lines = [
        "",
        f"=== the goal of auto: {auto['share_wanted']:.0%} of the clean {score} if one transform reaches it ===",
        "",
    ]
    width = max(6, *(len(one["group"]) for one in auto["sources"]))
    wide = max(WIDTH, len(score) + 1)
    lines.append(f"{'source':{width}}    n  clean  {'best single':22} {score:>{wide - 1}}    auto  share of clean")
    for one in auto["sources"]:
        if one["share"] is None:
            text = f"{one['group']:{width}}  undecided: {one['reason']}"
            lines += textwrap.wrap(text, 100, subsequent_indent=" " * (width + 2))
            continue
        clean, best, own = (_shown(one[key]) for key in ("clean_score", "best_score", "auto_score"))
        lines.append(
            f"{one['group']:{width}} {one['num_samples']:4}  {clean:{WIDTH}}  {one['best']:22} {best:{wide}}  "
            f"{own:{WIDTH}}  {_share(one)}  {_met(one)}"
        )
    return [*lines, "", *(part for line in goal_lines(auto, metric) for part in textwrap.wrap(line, 100))]


def _shown(score: float | None) -> str:
    return "" if score is None else format_score(score)


def _met(one: AutoSource) -> str:
    """Return whether the goal is met on a source, in words."""
    met = "met" if one["met"] else "NOT met"
    if not one["recovered"]:
        met = "by auto alone" if one["auto_alone"] else "not recovered"
    return met + ("" if one["clear"] in (True, None) else ", not clearly")


def _share(one: AutoSource) -> str:
    """Return auto's share of the clean score with its interval."""
    share = "" if one["share"] is None else f"{one['share']:4.0%}"
    if one["share_interval"] is None:
        return f"{share} (no interval below {FEW_EXAMPLES})"
    low, high = one["share_interval"]
    return f"{share} [{low:.0%}, {high:.0%}]"


def goal_lines(auto: AutoGoal, metric: ShownMetric) -> list[str]:
    """Return the verdict on the automatic repair in sentences: met or not, failures, harm, definition, bias.

    Args:
        auto: Return value of `judge_auto`.
        metric: Metric of its scores.
    """
    score = metric["label"]
    verdict = {True: "The goal is met", False: "The goal is NOT met", None: "The goal is undecided"}[auto["met"]]
    lines = [f"{verdict}: auto reaches {auto['share_wanted']:.0%} of the clean {score} on {auto['reached']} of "
             f"the {auto['recovered']} sources that a single transform recovers."]  # fmt: skip
    if auto["failed"]:
        lines.append(f"It fails on: {', '.join(auto['failed'])}.")
    if auto["auto_alone"]:
        lines.append(f"Beyond the goal, auto alone reaches that share on: {', '.join(auto['auto_alone'])}.")
    for one in auto["harm"]:
        interval = one["difference_interval"]
        ends = "no interval" if interval is None else f"[{format_score(interval[0])}, {format_score(interval[1])}]"
        sure = "" if one["clear"] in (True, None) else ", not clearly"
        lines.append(
            f"Harm on clean text ({one['group']}, n={one['num_samples']}): {score} {format_score(one['difference'])} "
            f"{ends} against the baseline, {'within' if one['met'] else 'NOT within'} the {auto['harm_allowed']:g} "
            f"allowed{sure}."
        )
    return [*lines, auto["definition"], auto["bias"]]


def _against(row: RankingRow) -> str:
    """Return how a configuration compares with the baseline."""
    difference, interval, p_holm = row["difference"], row["difference_interval"], row["p_holm"]
    if difference is None or interval is None or p_holm is None:
        words = {"baseline": "is the baseline", "identity": "identity: changed nothing on this source"}
        return words.get(row["verdict"], row["verdict"])
    sign = "+" if difference >= 0 else ""
    control = " (saw the true tokens: a control)" if row["supervised"] else ""
    return (
        f"{sign}{format_score(difference)} [{format_score(interval[0])}, {format_score(interval[1])}] "
        f"p={p_holm:.3f} {row['verdict']}{control}"
    )
