"""The analysis of a sweep as terminal text. Main entry: `render()`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from latentwire.analysis.controls import label
from latentwire.analysis.records import (
    Across,
    Atlas,
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
from latentwire.records import Budget, ShownMetric, succeeded
from latentwire.reports.draws import render_draws
from latentwire.reports.goal import WIDTH, render_goal
from latentwire.stats.formatting import format_p, format_score
from latentwire.stats.intervals import FEW as FEW_PASSAGES
from latentwire.stats.intervals import Interval

TOP = 5  # rows of a ranking above the line, or in its short form
FEW = 6  # up to this number of sources, rankings are printed whole
CHOSEN = "x"  # mark of a score that was chosen on half of the passages and is from the other half
OTHER_SCORES = {"f1": "F1", "em": "EM"}  # shown in every ranking, next to the primary metric


def incomplete(summary: Summary) -> str | None:
    """Return a sentence that reports missing examples, which a budget can cause, or None."""
    budget = summary["budget"]
    counts = [result["num_samples"] for result in summary["results"] if succeeded(result)]
    most, fewest = max(counts, default=0), min(counts, default=0)
    fewer, wanted = sum(count < most for count in counts), most if budget is None else budget["wanted"]
    if not fewer and most >= wanted:
        return None
    text = f"Incomplete matrix: at most {most} of {wanted} examples were evaluated"
    if fewer:
        text += f", and {fewer} of {len(counts)} configurations have fewer ({fewest} or more); each shows its n"
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
    first = {row["group"] for row in analysis["draws"]}  # sources of the first draw, in a sweep with repeats
    shown = [group for group in analysis["groups"] if not first or group["group"] in first]
    for group in shown:
        lines += _render_group(group, metric) if len(shown) <= FEW else _render_briefly(group, metric)
    lines += render_draws(analysis["draws"], shown)
    if analysis["atlas"] is not None:
        lines += _render_matrix(analysis["atlas"], metric) + _render_tolerance(analysis["atlas"], metric)
    if analysis["across"] is not None:
        lines += ["", *textwrap.wrap(across_line(analysis["across"]), 100)]
    if analysis["auto"] is not None:
        lines += render_goal(analysis["auto"], metric)
    return "\n".join(lines)


def across_line(across: Across) -> str:
    """Return a sentence with the number of sources on which a repair helps."""
    return (
        f"At least {across['helped']} of {across['sources']} sources have a repair that is better than their baseline, "
        f"with {1 - across['alpha']:.0%} confidence for all sources together."
    )


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
        *confirmation_lines(group, metric),
    ]


def _render_group(group: GroupAnalysis, metric: ShownMetric) -> list[str]:
    rows, score = group["ranking"], metric["label"]
    lines = ["", f"=== source {group['group']}, {group['num_samples']} examples ===", ""]
    lines += _render_controls(group, score) + _render_ranking(rows, metric) + _render_passages(group)
    lines += ["", "Best of each family"]
    for row in group["best_of_family"]:
        few = f"  n={row['num_samples']}" if row["num_samples"] < group["num_samples"] else ""
        lines.append(f"  {row['family']:20} {format_score(quotable(row)[0])}{_mark(row)} {label(row)}{few}")
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
    lines += ["", f"Verdict: {group['verdict']}"]
    return [*lines, *confirmation_lines(group, metric), f"Next: {group['next']}", *_confirm(group)]


def confirmation_lines(group: GroupAnalysis, metric: ShownMetric) -> list[str]:
    """Return a line on the winner's confirmation on other passages, or no line if it has not run."""
    found = group["confirmation"]
    if found is None:
        return []
    (low, high), (lower, upper) = found["score_interval"], found["difference_interval"]
    sign = "+" if found["difference"] >= 0 else ""
    return [
        f"{'Confirmed' if found['confirmed'] else 'NOT confirmed'} on {found['num_samples']} other examples about "
        f"{found['passages']} other passages: {found['experiment']} {metric['label']} {format_score(found['score'])} "
        f"[{format_score(low)}, {format_score(high)}], {sign}{format_score(found['difference'])} "
        f"[{format_score(lower)}, {format_score(upper)}] against the baseline, {format_p(found['p_value'])}"
    ]


def _confirm(group: GroupAnalysis) -> list[str]:
    """Return a line with the command that confirms the winner, unless it is confirmed."""
    command = group["confirm_command"]
    return [] if command is None or group["confirmation"] is not None else [f"{how_to_confirm(command)}: {command}"]


def how_to_confirm(command: str) -> str:
    """Return what the command of a source does: confirm its winner, or choose one that can be confirmed."""
    if "part=confirm" in command:
        return "Confirm it first"
    return "These examples chose it. To confirm a winner, choose it on half of the passages first"


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
        shown, (low, high) = quotable(row)
        scores = f"{format_score(shown):{wide}} [{format_score(low):{WIDTH}} {format_score(high):{WIDTH}}]  "
        values = {"f1": row["f1"], "em": row["em"]}
        scores += "".join(f"{format_score(values[name]):{WIDTH}} " for name in others)
        scores += f"{row['empty_rate']:4.0%}  {_percent((row['cross_fit'] or row)['recovered']):>10}"
        few = f"n={row['num_samples']} " if len(counts) > 1 else ""
        lines.append(f"{rank:3}{_mark(row)}{label(row):{width}}  {scores}   {few}{_against(row)}")
    how = chosen_line(rows)
    return lines if how is None else [*lines, how]


def chosen_line(rows: Sequence[RankingRow]) -> str | None:
    """Return how the score of the chosen row was made, or None if no row was chosen among several."""
    chosen = next((row["cross_fit"] for row in rows if row["cross_fit"] is not None), None)
    if chosen is None:
        return None
    return f"{CHOSEN} the best of {chosen['among']}: chosen on half of the passages, scored on the other half"


def quotable(row: RankingRow) -> tuple[float, Interval]:
    """Return the score of a row that may be quoted, with its interval: the cross-fit one if the row was chosen."""
    chosen = row["cross_fit"]
    return (row["score"], row["score_interval"]) if chosen is None else (chosen["score"], chosen["score_interval"])


def _mark(row: RankingRow) -> str:
    return " " if row["cross_fit"] is None else CHOSEN


def _render_passages(group: GroupAnalysis) -> list[str]:
    """Return a line with the number of passages, the unit of all intervals and tests, and the design effect."""
    if group["design_effect"] is None or group["passages"] == group["num_samples"]:
        return []
    return [
        f"{group['num_samples']} examples are about {group['passages']} passages, which are resampled as a whole: "
        f"design effect {group['design_effect']:.2f}"
    ]


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
    if (scrambled := group["controls"]["scrambled"]) is not None:
        lines.append(f"Other passages {_scored(scrambled, score)}")
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
    most = power["available"]
    needed = max(power["samples_needed"], power["samples_needed_corrected"])
    capped = f", but only {most} are available" if most is not None and needed > most else ""
    return [
        f"{power['num_samples']} examples detect {_difference_of(power['detectable'])} with power "
        f"{power['power']:.0%} in one comparison, {_difference_of(power['detectable_corrected'])} corrected for "
        f"{power['comparisons']} comparisons",
        f"a difference of {format_score(power['target_difference'])} needs samples={power['samples_needed']}, "
        f"corrected samples={power['samples_needed_corrected']}{capped}",
    ]


def _difference_of(size: float | None) -> str:
    return "no difference" if size is None else f"a difference of {format_score(size)}"


def _render_matrix(atlas: Atlas, metric: ShownMetric) -> list[str]:
    """Return lines with one column for each family: its configuration with the highest mean score."""
    places = [
        place for place, transform in enumerate(atlas["transforms"]) if transform["experiment"] in atlas["columns"]
    ]
    letters = [chr(ord("a") + number) if number < 26 else f"a{number - 26}" for number in range(len(places))]
    width = max(len(source["group"]) for source in atlas["sources"])
    lines = ["", f"=== the matrix: {metric['label']} by source and transform ===", ""]
    lines.append(f"the configuration of each family with the highest mean {metric['label']}; matrix.csv has all")
    if any(score is not None for scores in atlas["column_scores"] for score in scores):
        lines.append(f"{CHOSEN} chosen among several on half of the passages, and scored on the other half")
    lines.append("")
    lines += [f"  {letter}  {label(atlas['transforms'][place])}" for letter, place in zip(letters, places, strict=True)]
    most = max(cell["num_samples"] for cells in atlas["matrix"] for cell in cells if cell is not None)
    names = [atlas["transforms"][place]["experiment"] for place in places]
    chosen = [[scores[atlas["columns"].index(name)] for name in names] for scores in atlas["column_scores"]]
    table = [
        [_cell(cells[place], most, score) for place, score in zip(places, scores, strict=True)]
        for cells, scores in zip(atlas["matrix"], chosen, strict=True)
    ]
    wide = max(5, *(len(cell) for cells in table for cell in cells)) + 1
    legend = "   * better than the baseline"
    if any("/" in cell for cells in table for cell in cells):
        legend += f"; /n: on n examples instead of {most}"
    lines += ["", f"{'':{width}}" + "".join(f"{letter:>{wide}}" for letter in letters) + legend]
    for source, shown in zip(atlas["sources"], table, strict=True):
        lines.append(f"{source['group']:{width}}" + "".join(f"{cell:>{wide}}" for cell in shown).rstrip())
    return lines


def _cell(cell: Cell | None, most: int, chosen: float | None) -> str:
    """Return a cell as text; `chosen` is its cross-fit score, if it was chosen."""
    if cell is None:
        return "-"
    few = f"/{cell['num_samples']}" if cell["num_samples"] < most else ""
    shown = format_score(cell["score"]) if chosen is None else CHOSEN + format_score(chosen)
    return shown + ("*" if cell["verdict"] == "better" else "" if few else " ") + few


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
        return f"no interval below {FEW_PASSAGES} passages"
    words = {"beyond": "after the last", "before": "before the first"}
    ends = [words.get(end["status"], "") or f"{end['level']:.3g}" for end in row["interval"]]
    return f"[{', '.join(ends)}]"


def _against(row: RankingRow) -> str:
    """Return how a configuration compares with the baseline."""
    difference, interval, p_holm = row["difference"], row["difference_interval"], row["p_holm"]
    chosen = row["cross_fit"]
    if chosen is not None and chosen["difference"] is not None:
        difference, interval = chosen["difference"], chosen["difference_interval"]
    if difference is None or interval is None or p_holm is None:
        words = {"baseline": "is the baseline", "identity": "identity: changed nothing on this source"}
        return words.get(row["verdict"], row["verdict"])
    sign = "+" if difference >= 0 else ""
    control = " (saw the true tokens: a control)" if row["supervised"] else ""
    return (
        f"{sign}{format_score(difference)} [{format_score(interval[0])}, {format_score(interval[1])}] "
        f"{format_p(p_holm)} {row['verdict']}{control}"
    )
