"""The analysis of a sweep as text for a terminal and as tables of plain values."""

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

TOP = 5
FEW = 6  # sources whose rankings are shown whole


def ranking_table(summary: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Return the ranking of all groups as columns and rows of plain values."""
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
    """Return everything worth a table of its own, by name: ranking, controls, matrix, tolerance, auto, examples.

    Args:
        summary: Of the sweep.
        examples: Results with their predictions, to be read side by side.
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
    """Return what the automatic repair brings back, a row for each source."""
    columns = ["group", "num_samples", "clean_f1", "best", "best_f1", "auto_f1", "share", "share_low", "share_high",
               "recovered", "met", "reason"]  # fmt: skip
    rows = [
        [one["group"], one["num_samples"], one["clean_f1"], one["best"], one["best_f1"], one["auto_f1"], one["share"],
         *(one["share_interval"] or (None, None)), one["recovered"], one["met"], one["reason"]]
        for one in auto["sources"]
    ]  # fmt: skip
    return columns, rows


def incomplete(summary: dict[str, Any]) -> str | None:
    """Say that results are not the full matrix: that a budget left configurations with fewer examples."""
    found, budget = coverage(summary["analysis"]["groups"]), summary["budget"]
    wanted = (budget or {}).get("wanted") or found["most"]
    if not found["fewer"] and found["most"] >= wanted:
        return None
    text = f"Not the full matrix: at most {found['most']} of {wanted} examples were asked"
    if found["fewer"]:
        text += (
            f", and {found['fewer']} of {found['configurations']} configurations were asked fewer of them "
            f"({found['fewest']} or more); each shows its n"
        )
    return text + "."


def render(summary: dict[str, Any]) -> str:
    """Return the analysis as text."""
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
    """Say what the budget chose and what it left out."""
    lines = [
        "",
        f"Budget: {budget['seconds_spent'] / 60:.1f} of {budget['minutes']:g} minutes; all {budget['configurations']} "
        f"configurations on {budget['first']} examples, the last round on {budget['samples']}",
    ]
    if estimate := budget.get("estimate"):
        lines.append(
            f"  begun by an estimate, {estimate['seconds_per_example']:.3f} s an example on {estimate['samples']} of "
            f"{', '.join(estimate['names'])}; measured in the last round: {budget['seconds_per_example']:.3f} s"
        )
    for halving in budget["halvings"]:
        left = sum(len(group["left_out"]) for group in halving["groups"])
        lines.append(f"  {halving['why']}; {left} left out")
    ended = budget["stopped"] or "every configuration that was asked most failed"
    return [*lines, f"  ended: {ended}", f"  {budget['note']}", f"  Times: {budget['time_model']}."]


def _render_briefly(group: dict[str, Any]) -> list[str]:
    """Show the best of one source among many, and what to make of it."""
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
            level += ", which says little where the baseline reads nothing"
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
    lines = [f"    {'':{width}}  F1    95% interval  EM    empty  back   against the baseline"]
    for rank, row in enumerate(rows, 1):
        if rank == TOP + 1:
            lines.append("    " + "-" * (width + 60))
        low, high = row["f1_interval"]
        scores = f"{format_score(row['f1']):5} [{format_score(low):5} {format_score(high):5}]"
        scores += f"  {format_score(row['em']):5} {row['empty_rate']:4.0%}  {_percent(row['recovered']):>5}"
        few = f"n={row['num_samples']} " if len(counts) > 1 else ""
        lines.append(f"{rank:3} {label(row):{width}}  {scores}   {few}{_against(row)}")
    return lines


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _render_controls(group: dict[str, Any]) -> list[str]:
    """Show the controls; a source that cannot answer says so before anything else."""
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
        lines.append(text + ("" if lower["clearly_below"] else "  NOT clearly below the upper one"))
    if group["reason"] is not None:
        lines.append(f"Cannot be answered: {group['reason']}")
    return [*lines, "back: the share of the way from the empty context to the upper control", ""]


def _render_power(power: dict[str, Any] | None) -> list[str]:
    if power is None:
        return []
    return [
        f"{power['num_samples']} examples show a difference of {format_score(power['detectable'])} with a chance of "
        f"{power['power']:.0%} (one comparison), {format_score(power['detectable_corrected'])} corrected for "
        f"{power['comparisons']}",
        f"a difference of {format_score(power['wished'])} needs samples={power['samples_needed']}, corrected "
        f"samples={power['samples_needed_corrected']}",
    ]


def _render_matrix(analysis: dict[str, Any]) -> list[str]:
    """Show one column for each family: the configuration that did best over all sources."""
    atlas = analysis["atlas"]
    places = [
        place for place, transform in enumerate(atlas["transforms"]) if transform["experiment"] in atlas["columns"]
    ]
    letters = [chr(ord("a") + number) if number < 26 else f"a{number - 26}" for number in range(len(places))]
    width = max(len(source["group"]) for source in atlas["sources"])
    lines = ["", "=== the matrix: F1 by source and transform ===", ""]
    lines += ["one configuration of each family, the best over all sources on these examples; all in matrix.csv", ""]
    lines += [f"  {letter}  {label(atlas['transforms'][place])}" for letter, place in zip(letters, places, strict=True)]
    most = max(cell["num_samples"] for cells in atlas["matrix"] for cell in cells if cell is not None)
    table = [[_cell(cells[place], most) for place in places] for cells in atlas["matrix"]]
    wide = max(5, *(len(cell) for cells in table for cell in cells)) + 1
    told = "   * better than the baseline"
    if any("/" in cell for cells in table for cell in cells):
        told += f"; /n: on n examples, not {most}"
    lines += ["", f"{'':{width}}" + "".join(f"{letter:>{wide}}" for letter in letters) + told]
    for source, shown in zip(atlas["sources"], table, strict=True):
        lines.append(f"{source['group']:{width}}" + "".join(f"{cell:>{wide}}" for cell in shown).rstrip())
    return lines


def _cell(cell: dict[str, Any] | None, most: int) -> str:
    if cell is None:
        return "-"
    few = f"/{cell['num_samples']}" if cell["num_samples"] < most else ""
    return format_score(cell["f1"]) + ("*" if cell["verdict"] == "better" else "" if few else " ") + few


def _render_tolerance(atlas: dict[str, Any]) -> list[str]:
    """Show for each ladder the level at which a transform falls to half of the clean score."""
    lines: list[str] = []
    for ladder in atlas["tolerance"]:
        levels = " ".join(f"{level:g}" for level in ladder["levels"])
        if any(row["anchored"] for row in ladder["transforms"]):
            levels = f"text {levels}"
        lines += [
            "",
            f"=== tolerance: {ladder['ladder']}{ladder['variant']}, {ladder['dial']} where F1 falls to half of the "
            f"clean score ({format_score(ladder['threshold'])}) ===",
            f"levels {levels} ({ladder['unit']}); 95% interval; half of the clean score on the n examples of a row",
        ]
        if ladder["left_out"]:
            lines += textwrap.wrap(left_out(ladder), 100, subsequent_indent="  ")
        if ladder["reason"] is not None:
            text = f"no tolerance can be told: {ladder['reason']}"
            lines += textwrap.wrap(text, 100, initial_indent="  ", subsequent_indent="    ")
            continue
        for row in ladder["transforms"]:
            if row["experiment"] in atlas["columns"]:
                lines.append(f"  {label(row):24} {tolerated(row):>8}  {_ends(row)}  n={row['num_samples']}")
    return lines


def left_out(ladder: dict[str, Any]) -> str:
    """Say which transforms a ladder leaves out, or nothing where it leaves out none."""
    names = ladder["left_out"]
    return f"left out, without results of the same examples at every level: {', '.join(names)}" if names else ""


def tolerated(row: dict[str, Any]) -> str:
    """Write the level to which a transform falls to half of the clean score, or why there is none."""
    if row["level"] is not None:
        return f"{row['level']:.3g}"
    if row["status"] == "beyond":
        return "above half at every level measured"
    return "below half on clean text" if row["anchored"] else "below the first level measured"


def _ends(row: dict[str, Any]) -> str:
    if row["interval"] is None:
        return f"no interval below {FEW_EXAMPLES} examples"
    words = {"beyond": "past the last", "before": "before the first"}
    ends = [words.get(end["status"], "") or f"{end['level']:.3g}" for end in row["interval"]]
    return f"[{', '.join(ends)}]"


def _render_auto(auto: dict[str, Any]) -> list[str]:
    """Show the goal of the automatic repair: source by source, where it fails, and what it costs on clean text."""
    lines = [
        "",
        f"=== the goal of auto: {auto['share_wanted']:.0%} of the clean F1 wherever one transform has it ===",
        "",
    ]
    width = max(6, *(len(one["group"]) for one in auto["sources"]))
    lines.append(f"{'source':{width}}    n  clean  best single              F1    auto  share of clean")
    for one in auto["sources"]:
        if one["share"] is None:
            text = f"{one['group']:{width}}  cannot be told: {one['reason']}"
            lines += textwrap.wrap(text, 100, subsequent_indent=" " * (width + 2))
            continue
        met = "met" if one["met"] else "NOT met"
        if not one["recovered"]:
            met = "by auto alone" if one["alone"] else "not recovered by any"
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
    """Return the verdict on the automatic repair in sentences: met or not, where it fails, the harm, the caveat."""
    told = {True: "The goal is met", False: "The goal is NOT met", None: "Whether the goal is met cannot be told"}
    lines = [f"{told[auto['met']]}: auto has {auto['share_wanted']:.0%} of the clean F1 on {auto['reached']} of the "
             f"{auto['recovered']} sources that a single transform recovers."]  # fmt: skip
    if auto["failed"]:
        lines.append(f"It fails on: {', '.join(auto['failed'])}.")
    if auto["alone"]:
        lines.append(f"Beyond the goal auto alone, no single transform, has as much on: {', '.join(auto['alone'])}.")
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
