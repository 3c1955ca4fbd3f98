"""The analysis of a sweep as terminal text and as tables. Main entries: `render()` and `tables()`."""

from __future__ import annotations

import textwrap
from typing import Any

from latentwire.analysis.controls import label
from latentwire.analysis.matrix import matrix_table
from latentwire.analysis.ranking import DEAD, coverage
from latentwire.analysis.tolerance import tolerance_table
from latentwire.stats.formatting import format_score
from latentwire.stats.intervals import FEW as FEW_EXAMPLES

Result = dict[str, Any]
Table = tuple[list[str], list[list[Any]]]

TOP = 5  # rows of a ranking above the line, or in its short form
FEW = 6  # up to this number of sources, rankings are printed whole


def ranking_table(summary: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Return the names of the columns and the rows of a table with the rankings of all sources."""
    columns = ["group", "rank", "name", "family", "f1", "f1_low", "f1_high", "num_samples", "em", "empty_rate",
               "recovered", "difference", "p_holm", "verdict", "supervised"]  # fmt: skip
    rows = [
        [group["group"], rank, row["name"], row["family"], row["f1"], *row["f1_interval"],
         row["num_samples"], row["em"], row["empty_rate"], row["recovered"], row.get("difference"), row.get("p_holm"),
         row["verdict"], row["supervised"]]
        for group in summary["analysis"]["groups"]
        for rank, row in enumerate(group["ranking"], 1)
    ]  # fmt: skip
    return columns, rows


def tables(summary: dict[str, Any], examples: list[tuple[Result, list[dict[str, Any]]]]) -> dict[str, Table]:
    """Return the tables of a sweep by name: ranking, controls, warnings, matrix, tolerance, auto, examples.

    Args:
        summary: Summary of the sweep, with its analysis.
        examples: Results with their predictions, for the table of examples.
    """
    analysis = summary["analysis"]
    found = {"ranking": ranking_table(summary)}
    if summary["controls"]:
        columns = ["name", "control", "group", "f1", "f1_low", "f1_high", "num_samples"]
        rows = [
            [c["name"], c["control"], c["group"], c["f1"], *c["f1_interval"], c["num_samples"]]
            for c in summary["controls"]
            if c["status"] == "ok"
        ]
        found["controls"] = (columns, rows)
    if analysis["warnings"]:
        rows = [[w["level"], w["kind"], w["message"], w["count"], ", ".join(w["names"])] for w in analysis["warnings"]]
        found["warnings"] = (["level", "kind", "message", "count", "names"], rows)
    if analysis["atlas"] is not None:
        found["matrix"] = matrix_table(analysis["atlas"])
        found["tolerance"] = tolerance_table(analysis["atlas"])
    if analysis["auto"] is not None:
        found["auto"] = auto_table(analysis["auto"])
    columns = ["name", "group", "id", "question", "references", "prediction", "f1"]
    rows = [
        [r["name"], r["group"], row["id"], row["question"], " | ".join(row["references"]), row["prediction"], row["f1"]]
        for r, predictions in examples
        for row in predictions
    ]
    found["examples"] = (columns, rows)
    return found


def auto_table(auto: dict[str, Any]) -> Table:
    """Return the names of the columns and the rows of a table with the automatic repair on each source."""
    columns = ["group", "num_samples", "clean_f1", "best", "best_f1", "auto_f1", "share", "share_low", "share_high",
               "recovered", "met", "reason"]  # fmt: skip
    rows = [
        [one["group"], one["num_samples"], one["clean_f1"], one["best"], one["best_f1"], one["auto_f1"], one["share"],
         *(one["share_interval"] or (None, None)), one["recovered"], one["met"], one["reason"]]
        for one in auto["sources"]
    ]  # fmt: skip
    return columns, rows


def incomplete(summary: dict[str, Any]) -> str | None:
    """Return a sentence that reports missing examples, which a budget can cause, or None."""
    found, budget = coverage(summary["analysis"]["groups"]), summary["budget"]
    wanted = (budget or {}).get("wanted") or found["most"]
    if not found["fewer"] and found["most"] >= wanted:
        return None
    text = f"Incomplete matrix: at most {found['most']} of {wanted} examples were evaluated"
    if found["fewer"]:
        text += (
            f", and {found['fewer']} of {found['configurations']} configurations have fewer ({found['fewest']} or "
            "more); each shows its n"
        )
    return text + "."


def render(summary: dict[str, Any]) -> str:
    """Return the analysis of a sweep as text.

    Args:
        summary: Summary of the sweep, with its analysis.
    """
    analysis = summary["analysis"]
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
        lines += _render_group(group) if len(analysis["groups"]) <= FEW else _render_briefly(group)
    if analysis["atlas"] is not None:
        lines += _render_matrix(analysis) + _render_tolerance(analysis["atlas"])
    if analysis["auto"] is not None:
        lines += _render_auto(analysis["auto"])
    return "\n".join(lines)


def _names(warning: dict[str, Any]) -> str:
    names, count = warning["names"], warning["count"]
    return f" ({', '.join(names[:3])}{f' and {count - 3} more' if count > 3 else ''})"


def _render_budget(budget: dict[str, Any]) -> list[str]:
    """Return lines about the budget: its rounds, what each left out, and how it ended."""
    lines = [
        "",
        f"Budget: {budget['seconds_spent'] / 60:.1f} of {budget['minutes']:g} minutes; all {budget['configurations']} "
        f"configurations on {budget['first']} examples, in the last round {budget['samples']}",
    ]
    if estimate := budget.get("estimate"):
        lines.append(
            f"  first estimate: {estimate['seconds_per_example']:.3f} s an example, from {estimate['samples']} of "
            f"{', '.join(estimate['names'])}; measured in the last round: {budget['seconds_per_example']:.3f} s"
        )
    for halving in budget["halvings"]:
        count = sum(len(group["left_out"]) for group in halving["groups"])
        lines.append(f"  {halving['why']}; {count} left out")
    ended = budget["stopped"] or "every configuration of the last round failed"
    return [*lines, f"  ended: {ended}", f"  {budget['note']}", f"  Times: {budget['time_model']}."]


def _render_briefly(group: dict[str, Any]) -> list[str]:
    """Return lines with the best configurations and the verdict of one source."""
    rows = _render_ranking({**group, "ranking": group["ranking"][:TOP]})
    return [
        "",
        f"=== source {group['group']}, {group['num_samples']} examples ===",
        *rows,
        f"Verdict: {group['verdict']}",
    ]


def _render_group(group: dict[str, Any]) -> list[str]:
    rows = group["ranking"]
    lines = ["", f"=== source {group['group']}, {group['num_samples']} examples ===", ""]
    lines += _render_controls(group) + _render_ranking(group)
    lines += ["", "Best of each family"]
    for row in group["best_of_family"]:
        few = f"  n={row['num_samples']}" if row["num_samples"] < group["num_samples"] else ""
        lines.append(f"  {row['family']:20} {format_score(row['f1'])}  {label(row)}{few}")
    if group["dial_means"]:
        lines += ["", "Mean F1 by dial"]
        for entry in group["dial_means"]:
            means = "  ".join(f"{mean['value']}: {format_score(mean['f1'])}" for mean in entry["means"])
            lines.append(f"  {entry['family'] + ' ' + entry['dial']:28} {means}")
    lines.append("")
    if group["reached_80_percent"] is not None:
        level = f"80% of the baseline's F1 ({format_score(0.8 * group['baseline_f1'])})"
        if group["baseline_f1"] < DEAD:
            level += ", which means little because the baseline scores close to 0"
        lines.append(f"{group['reached_80_percent']} of {len(rows)} reached {level}")
    lines.append(f"{group['more_than_half_empty']} of {len(rows)} gave more than 50% empty answers")
    lines += _render_power(group["power"])
    lines += ["", "Observation           holds | meaning | action"]
    for row in group["observations"]:
        lines.append(f"  {row['observation']:20} {row['holds']} | {row['meaning']} | {row['action']}")
    lines += ["", f"Verdict: {group['verdict']}", f"Next: {group['next']}"]
    return lines


def _render_ranking(group: dict[str, Any]) -> list[str]:
    rows = group["ranking"]
    width = max(len(label(row)) for row in rows)
    counts = {row["num_samples"] for row in rows}
    lines = [f"    {'':{width}}  F1    95% interval  EM    empty  recovered   against the baseline"]
    for rank, row in enumerate(rows, 1):
        if rank == TOP + 1:
            lines.append("    " + "-" * (width + 65))
        low, high = row["f1_interval"]
        scores = f"{format_score(row['f1']):5} [{format_score(low):5} {format_score(high):5}]"
        scores += f"  {format_score(row['em']):5} {row['empty_rate']:4.0%}  {_percent(row['recovered']):>10}"
        few = f"n={row['num_samples']} " if len(counts) > 1 else ""
        lines.append(f"{rank:3} {label(row):{width}}  {scores}   {few}{_against(row)}")
    return lines


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _render_controls(group: dict[str, Any]) -> list[str]:
    """Return lines with the controls, and with the reason if the source cannot rank repairs."""
    controls = group["controls"]
    if controls is None:
        return []
    clean = controls["clean"]
    low, high = clean["f1_interval"]
    lines = [
        f"Upper control  {clean['name']} F1 {format_score(clean['f1'])} [{format_score(low)}, {format_score(high)}]"
    ]
    for lower in controls["lower"]:
        low, high = lower["f1_interval"]
        text = (
            f"Lower control  {lower['name']} F1 {format_score(lower['f1'])} [{format_score(low)}, {format_score(high)}]"
        )
        lines.append(text + ("" if lower["clearly_below"] else "  NOT clearly below the upper control"))
    if group["reason"] is not None:
        lines.append(f"Cannot be answered: {group['reason']}")
    return [
        *lines,
        "recovered: share of the way from the empty passage to the clean text, (F1 - empty) / (clean - empty)",
        "",
    ]


def _render_power(power: dict[str, Any] | None) -> list[str]:
    """Return lines with the detectable difference and the needed number of examples."""
    if power is None:
        return []
    return [
        f"{power['num_samples']} examples detect a difference of {format_score(power['detectable'])} with power "
        f"{power['power']:.0%} in one comparison, {format_score(power['detectable_corrected'])} corrected for "
        f"{power['comparisons']} comparisons",
        f"a difference of {format_score(power['wished'])} needs samples={power['samples_needed']}, corrected "
        f"samples={power['samples_needed_corrected']}",
    ]


def _render_matrix(analysis: dict[str, Any]) -> list[str]:
    """Return lines with one column for each family: its configuration with the highest mean F1."""
    atlas = analysis["atlas"]
    places = [
        place for place, transform in enumerate(atlas["transforms"]) if transform["experiment"] in atlas["columns"]
    ]
    letters = [chr(ord("a") + number) if number < 26 else f"a{number - 26}" for number in range(len(places))]
    width = max(len(source["group"]) for source in atlas["sources"])
    lines = ["", "=== the matrix: F1 by source and transform ===", ""]
    lines += ["the configuration of each family with the highest mean F1; matrix.csv has all configurations", ""]
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


def _cell(cell: dict[str, Any] | None, most: int) -> str:
    if cell is None:
        return "-"
    few = f"/{cell['num_samples']}" if cell["num_samples"] < most else ""
    return format_score(cell["f1"]) + ("*" if cell["verdict"] == "better" else "" if few else " ") + few


def _render_tolerance(atlas: dict[str, Any]) -> list[str]:
    """Return lines with the level at which each transform falls to half of the clean score."""
    lines: list[str] = []
    for ladder in atlas["tolerance"]:
        levels = " ".join(f"{level:g}" for level in ladder["levels"])
        if any(row["anchored"] for row in ladder["transforms"]):
            levels = f"text {levels}"
        lines += [
            "",
            f"=== tolerance: {ladder['ladder']}{ladder['variant']}, {ladder['dial']} where F1 falls to half of the "
            f"clean score ({format_score(ladder['threshold'])}) ===",
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


def left_out(ladder: dict[str, Any]) -> str:
    """Return a sentence with the transforms that a ladder leaves out, or an empty text."""
    names = ladder["left_out"]
    return f"left out, because a level or common examples are missing: {', '.join(names)}" if names else ""


def tolerated(row: dict[str, Any]) -> str:
    """Return the level at which a transform falls to half of the clean score, or why it has no level."""
    if row["level"] is not None:
        return f"{row['level']:.3g}"
    if row["status"] == "beyond":
        return "above half at every level"
    return "below half on clean text" if row["anchored"] else "below half at the first measured level"


def _ends(row: dict[str, Any]) -> str:
    if row["interval"] is None:
        return f"no interval below {FEW_EXAMPLES} examples"
    words = {"beyond": "after the last", "before": "before the first"}
    ends = [words.get(end["status"], "") or f"{end['level']:.3g}" for end in row["interval"]]
    return f"[{', '.join(ends)}]"


def _render_auto(auto: dict[str, Any]) -> list[str]:
    """Return lines with the goal of the automatic repair: each source, failures, and harm on clean text."""
    lines = [
        "",
        f"=== the goal of auto: {auto['share_wanted']:.0%} of the clean F1 if one transform reaches it ===",
        "",
    ]
    width = max(6, *(len(one["group"]) for one in auto["sources"]))
    lines.append(f"{'source':{width}}    n  clean  best single              F1    auto  share of clean")
    for one in auto["sources"]:
        if one["share"] is None:
            text = f"{one['group']:{width}}  undecided: {one['reason']}"
            lines += textwrap.wrap(text, 100, subsequent_indent=" " * (width + 2))
            continue
        met = "met" if one["met"] else "NOT met"
        if not one["recovered"]:
            met = "by auto alone" if one["alone"] else "not recovered"
        met += "" if one["clear"] in (True, None) else ", not clearly"
        lines.append(
            f"{one['group']:{width}} {one['num_samples']:4}  {format_score(one['clean_f1']):5}  {one['best']:22} "
            f"{format_score(one['best_f1']):5}  {format_score(one['auto_f1']):5}  {_share(one)}  {met}"
        )
    return [*lines, "", *(part for line in goal_lines(auto) for part in textwrap.wrap(line, 100))]


def _share(one: dict[str, Any]) -> str:
    if one["share_interval"] is None:
        return f"{one['share']:4.0%} (no interval below {FEW_EXAMPLES})"
    low, high = one["share_interval"]
    return f"{one['share']:4.0%} [{low:.0%}, {high:.0%}]"


def goal_lines(auto: dict[str, Any]) -> list[str]:
    """Return the verdict on the automatic repair in sentences: met or not, failures, harm, definition, bias.

    Args:
        auto: Return value of `judge_auto`.
    """
    verdict = {True: "The goal is met", False: "The goal is NOT met", None: "The goal is undecided"}[auto["met"]]
    lines = [f"{verdict}: auto reaches {auto['share_wanted']:.0%} of the clean F1 on {auto['reached']} of the "
             f"{auto['recovered']} sources that a single transform recovers."]  # fmt: skip
    if auto["failed"]:
        lines.append(f"It fails on: {', '.join(auto['failed'])}.")
    if auto["alone"]:
        lines.append(f"Beyond the goal, auto alone reaches that share on: {', '.join(auto['alone'])}.")
    for one in auto["harm"]:
        interval = one["difference_interval"]
        ends = "no interval" if interval is None else f"[{format_score(interval[0])}, {format_score(interval[1])}]"
        sure = "" if one["clear"] in (True, None) else ", not clearly"
        lines.append(
            f"Harm on clean text ({one['group']}, n={one['num_samples']}): F1 {format_score(one['difference'])} {ends} "
            f"against the baseline, {'within' if one['met'] else 'NOT within'} the {auto['harm_allowed']:g} allowed"
            f"{sure}."
        )
    return [*lines, auto["definition"], auto["bias"]]


def _against(row: dict[str, Any]) -> str:
    if row["verdict"] == "baseline":
        return "is the baseline"
    if row["verdict"] == "identity":
        return "identity: changed nothing on this source"
    if row["verdict"] == "not compared":
        return "not compared"
    low, high = row["difference_interval"]
    sign = "+" if row["difference"] >= 0 else ""
    return (
        f"{sign}{format_score(row['difference'])} [{format_score(low)}, {format_score(high)}] "
        f"p={row['p_holm']:.3f} {row['verdict']}{' (saw the true tokens: a control)' if row['supervised'] else ''}"
    )
