"""Finished results -> ranking, insights, verdicts, recommendation. Reads fields, never file names."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from latentwire.metrics import Comparison, Scores, compare_paired

Result = dict[str, Any]
ById = tuple[list[str], Scores]  # ids of the examples and their F1, both (N,)

SIGNIFICANT = 0.05  # of Holm-corrected p-values
DEAD = 0.05  # an F1 below this reads nothing
SEED = 0  # of the bootstrap
TOP = 5

# The questions the sweep was made for: what is observed, what it means, what to do.
WINNERS = {
    "rms_matching": ("RMS matching wins", "magnitude mismatch", "integrate RMS calibration into the adapter"),
    "anchor_offset": ("Anchor+offset wins", "inputs must stay near tokens", "add manifold regularization"),
    "nearest_k": ("K-nearest wins", "arbitrary embeddings fail", "force convex combinations of tokens"),
}


def analyze(results: list[Result], scores: dict[str, ById]) -> dict[str, Any]:
    """Analyse the successful results of a sweep, source by source.

    Args:
        results: Successful results.
        scores: Ids and per-example F1 of each result, by its name.

    Returns:
        A plain structure: for each group (source and whatever else was varied) the ranking with comparisons,
        the best of each family, mean F1 by dial, counts, the observations and a verdict.
    """
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        groups[result["group"]].append(result)
    return {"groups": [_analyze_group(group, members, scores) for group, members in groups.items()]}


def _analyze_group(group: str, results: list[Result], scores: dict[str, ById]) -> dict[str, Any]:
    ranked = sorted(results, key=lambda result: (-result["f1"], result["name"]))
    baseline = next((result for result in results if result["family"] == "baseline"), None)
    comparisons = _compare(baseline, [r for r in ranked if r is not baseline and not r["identity"]], scores)
    rows = [_row(result, comparisons.get(result["name"])) for result in ranked]
    winners = [row for row in rows if row["verdict"] == "better" and not row["supervised"]]
    level = _level_with(winners[0]["name"], [row["name"] for row in winners[1:]], scores) if winners else []
    best: dict[str, Any] = {}
    for row in rows:
        best.setdefault(row["family"], row)
    return {
        "group": group,
        "source": results[0]["source"],
        "num_samples": ranked[0]["num_samples"],
        "baseline_f1": baseline["f1"] if baseline else None,
        "ranking": rows,
        "best_of_family": list(best.values()),
        "dial_means": _dial_means(results),
        "reached_80_percent": sum(row["f1"] >= 0.8 * baseline["f1"] for row in rows) if baseline else None,
        "more_than_half_empty": sum(row["empty_rate"] > 0.5 for row in rows),
        "observations": _observations(baseline, rows, winners, level),
        **_verdict(baseline, rows, winners, level),
    }


def _compare(baseline: Result | None, others: list[Result], scores: dict[str, ById]) -> dict[str, Comparison]:
    """Compare with the baseline those that answered the same examples, as one family of comparisons."""
    if baseline is None:
        return {}
    ids, reference = scores[baseline["name"]]
    family = [other["name"] for other in others if scores[other["name"]][0] == ids]
    if not family:
        return {}
    systems = np.stack([scores[name][1] for name in family])
    return dict(zip(family, compare_paired(systems, reference, SEED), strict=True))


def _row(result: Result, comparison: Comparison | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        key: result[key]
        for key in (
            "name",
            "experiment",
            "family",
            "dials",
            "f1",
            "f1_interval",
            "em",
            "empty_rate",
            "identity",
        )
    }
    row["supervised"] = bool((result.get("fit") or {}).get("supervised"))  # saw the true tokens: a positive control
    if result["family"] == "baseline":
        verdict = "baseline"
    elif result["identity"]:
        verdict = "identity"
    elif comparison is None:
        verdict = "not compared"
    else:
        row |= {
            "difference": comparison.difference,
            "difference_interval": comparison.interval,
            "p_value": comparison.p_value,
            "p_holm": comparison.p_holm,
        }
        significant = comparison.p_holm < SIGNIFICANT
        verdict = ("better" if comparison.difference > 0 else "worse") if significant else "within noise"
    return row | {"verdict": verdict}


def _level_with(best: str, others: list[str], scores: dict[str, ById]) -> list[str]:
    """Return those that the data do not tell apart from the best."""
    if not others:
        return []
    systems = np.stack([scores[name][1] for name in others])
    compared = compare_paired(systems, scores[best][1], SEED)
    return [name for name, c in zip(others, compared, strict=True) if c.p_holm >= SIGNIFICANT]


def _dial_means(results: list[Result]) -> list[dict[str, Any]]:
    """Return mean F1 by the values of each dial, family by family."""
    by: dict[tuple[str, str], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        for dial, value in result["dials"].items():
            by[result["family"], dial][value].append(result["f1"])
    return [
        {
            "family": family,
            "dial": dial,
            "means": [
                {"value": value, "f1": float(np.mean(f1s)), "configurations": len(f1s)}
                for value, f1s in sorted(values.items())
            ],
        }
        for (family, dial), values in by.items()
        if len(values) > 1
    ]


def _observations(
    baseline: Result | None, rows: list[dict[str, Any]], winners: list[dict[str, Any]], level: list[str]
) -> list[dict[str, str]]:
    """Evaluate the five observations on these results: yes, no, or why it cannot be told."""
    if baseline is None:
        holds = "unknown: no baseline among the results"
    else:
        low, high = baseline["f1_interval"]
        interval = f"{three_digits(baseline['f1'])} [{three_digits(low)}, {three_digits(high)}]"
        holds = "yes" if low > 0.5 else "no" if high < 0.5 else "undecided, the interval holds .5"
        holds += f": {interval}"
    table = [("Baseline F1 > 0.5", "the LM can use these embeddings", "look at the encoder's distribution", holds)]
    top = {winners[0]["name"], *level} if winners else set()
    for family, (observation, meaning, action) in WINNERS.items():
        members = [row for row in rows if row["family"] == family]
        first = [row["experiment"] for row in members if row["name"] in top]
        if not members:
            holds = "unknown: not in this sweep"
        elif baseline is None:
            holds = "unknown: no baseline among the results"
        elif first:
            shared = "" if len(top) == len(first) else f", level with {len(top) - len(first)} of other families"
            holds = f"yes: {first[0]}{shared}"
        elif any(row["verdict"] == "better" for row in members):
            holds = f"no: better than the baseline, but behind {winners[0]['experiment']}"
        elif all(row["verdict"] == "identity" for row in members):
            holds = "no: changed nothing on this source"
        elif all(row["verdict"] in ("worse", "identity") for row in members):
            holds = "no: worse than the baseline"
        else:
            holds = "undecided: within noise of the baseline"
        table.append((observation, meaning, action, holds))
    highest = max(row["f1_interval"][1] for row in rows)
    holds = f"yes: no interval reaches above {three_digits(highest)}" if highest < DEAD else "no"
    if highest >= DEAD and all(row["f1"] < DEAD for row in rows):
        holds = f"nearly: no F1 reaches {three_digits(DEAD)}"
    table.append(("Everything fails", "inputs_embeds broken, or nothing repairs this", "debug the generation set-up",
                  holds))  # fmt: skip
    return [
        {"observation": observation, "meaning": meaning, "action": action, "holds": holds}
        for observation, meaning, action, holds in table
    ]


def _verdict(
    baseline: Result | None, rows: list[dict[str, Any]], winners: list[dict[str, Any]], level: list[str]
) -> dict[str, Any]:
    """Name a winner only where the data do, and what to do next."""
    if baseline is None:
        return {
            "winner": None,
            "verdict": "No baseline among these results, so nothing can be compared with it.",
            "next": "Include it: only='baseline|...'.",
        }
    worse = sum(row["verdict"] == "worse" for row in rows)
    compared = sum("p_holm" in row for row in rows)
    if not winners:
        noise = "Every difference from the baseline is within noise: no winner."
        if worse:
            noise = f"No winner: {worse} of {compared} configurations are worse than the baseline, none is better."
        if baseline["source"] == "text":
            advice = "The LM reads its own tokens as they are. Ask a source that it cannot read, such as "
            advice += "embed_source=scaled or embed_source=noisy."
        else:
            advice = "Nothing to integrate on this evidence; more samples could show smaller differences."
        return {"winner": None, "verdict": noise, "next": advice}
    first = winners[0]
    dials = " ".join(f"{dial}={value}" for dial, value in first["dials"].items())
    tied = [row["experiment"] for row in winners if row["name"] in level]
    ties = f", level with {', '.join(tied[:4])}{' and more' if len(tied) > 4 else ''}" if tied else ""
    return {
        "winner": first["name"],
        "verdict": f"{first['experiment']} is best: F1 {three_digits(first['f1'])} against "
        f"{three_digits(baseline['f1'])}{ties}.",
        "next": f"Integrate embed_transform={first['family']} {dials}".rstrip()
        + (", or the cheapest of those level with it" if level else "")
        + "; confirm it first on more examples (samples=...).",
    }


def three_digits(value: float) -> str:
    """Write a score as .512, a negative one as -.040, one as 1.000."""
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def ranking_table(summary: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Return the ranking of all groups as columns and rows of plain values."""
    columns = ["group", "rank", "name", "family", "f1", "f1_low", "f1_high", "em", "empty_rate", "difference",
               "p_holm", "verdict"]  # fmt: skip
    rows = [
        [group["group"], rank, row["name"], row["family"], row["f1"], *row["f1_interval"], row["em"],
         row["empty_rate"], row.get("difference"), row.get("p_holm"), row["verdict"]]
        for group in summary["analysis"]["groups"]
        for rank, row in enumerate(group["ranking"], 1)
    ]  # fmt: skip
    return columns, rows


def render(summary: dict[str, Any]) -> str:
    """Return the analysis as text."""
    lines = [
        "",
        f"Sweep {summary['sweep']}: {summary['total_experiments']} configurations, "
        f"{summary['successful']} successful, {summary['failed']} failed",
    ]
    for group in summary["analysis"]["groups"]:
        lines += _render_group(group)
    return "\n".join(lines)


def _render_group(group: dict[str, Any]) -> list[str]:
    rows = group["ranking"]
    width = max(len(row["experiment"]) for row in rows)
    lines = ["", f"=== source {group['group']}, {group['num_samples']} examples ===", ""]
    lines.append(f"    {'':{width}}  F1    95% interval  EM    empty   against the baseline")
    for rank, row in enumerate(rows, 1):
        if rank == TOP + 1:
            lines.append("    " + "-" * (width + 60))
        low, high = row["f1_interval"]
        scores = f"{three_digits(row['f1']):5} [{three_digits(low):5} {three_digits(high):5}]"
        scores += f"  {three_digits(row['em']):5} {row['empty_rate']:4.0%}"
        lines.append(f"{rank:3} {row['experiment']:{width}}  {scores}    {_against(row)}")
    lines += ["", "Best of each family"]
    lines += [f"  {row['family']:20} {three_digits(row['f1'])}  {row['experiment']}" for row in group["best_of_family"]]
    if group["dial_means"]:
        lines += ["", "Mean F1 by dial"]
        for entry in group["dial_means"]:
            means = "  ".join(f"{mean['value']}: {three_digits(mean['f1'])}" for mean in entry["means"])
            lines.append(f"  {entry['family'] + ' ' + entry['dial']:28} {means}")
    lines.append("")
    if group["reached_80_percent"] is not None:
        level = f"80% of the baseline's F1 ({three_digits(0.8 * group['baseline_f1'])})"
        if group["baseline_f1"] < DEAD:
            level += ", which says little where the baseline reads nothing"
        lines.append(f"{group['reached_80_percent']} of {len(rows)} reached {level}")
    lines.append(f"{group['more_than_half_empty']} of {len(rows)} gave more than 50% empty answers")
    lines += ["", "Observation           holds | meaning | action"]
    for row in group["observations"]:
        lines.append(f"  {row['observation']:20} {row['holds']} | {row['meaning']} | {row['action']}")
    lines += ["", f"Verdict: {group['verdict']}", f"Next: {group['next']}"]
    return lines


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
        f"{sign}{three_digits(row['difference'])} [{three_digits(low)}, {three_digits(high)}] "
        f"p={row['p_holm']:.3f} {row['verdict']}{' (saw the true tokens: a control)' if row['supervised'] else ''}"
    )
