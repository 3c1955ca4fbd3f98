"""Ranking, observations and verdict for each source of a sweep. Main entry: `analyze()`."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from latentwire.analysis.auto_goal import judge_auto
from latentwire.analysis.controls import (
    RANDOM,
    SEED,
    AnalysisSettings,
    ById,
    Evidence,
    above_empty,
    answerable,
    compare_with_baseline,
    detectable,
    difference_stds,
    group_controls,
    is_supervised,
    power,
    recovered,
)
from latentwire.analysis.findings import joined_findings
from latentwire.analysis.matrix import make_atlas
from latentwire.stats.comparison import Comparison, corrected, paired_bootstrap
from latentwire.stats.formatting import format_score
from latentwire.stats.intervals import Difference
from latentwire.stats.power import ALPHA

Result = dict[str, Any]

SIGNIFICANT = ALPHA  # for Holm-corrected p-values
DEAD = 0.05  # below this F1 the model does not use the passage

# Family -> observation, meaning, action.
WINNERS = {
    "rms_matching": ("RMS matching wins", "magnitude mismatch", "integrate RMS calibration into the adapter"),
    "anchor_offset": ("Anchor+offset wins", "inputs must stay near tokens", "add manifold regularization"),
    "nearest_k": ("K-nearest wins", "arbitrary embeddings fail", "force convex combinations of tokens"),
}


def analyze(
    results: list[Result], scores: dict[str, ById], controls: list[Result], settings: AnalysisSettings
) -> dict[str, Any]:
    """Analyse the successful results of a sweep, source by source.

    Args:
        results: Successful results, without controls.
        scores: Example ids and F1 of each result and control, by its name.
        controls: Controls of the sweep, including failed ones. A baseline on text among the results is also a clean
            control.
        settings: Settings of the analysis.

    Returns:
        A dict of plain values:
        groups: For each source its controls, ranking with comparisons, means by dial, observations and verdict.
            Other varied settings, such as the seed, make groups of their own.
        warnings: Findings of the detectors.
        coverage: Numbers of examples.
        atlas: Matrix and tolerances; None for one source.
        auto: Check of the automatic repair.
    """
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        groups[result["group"]].append(result)
    controlled = {control.get("variant", "") for control in controls}
    controls = [control for control in controls if control["name"] in scores]
    analysed = []
    for group, members in groups.items():
        baseline = next((result for result in members if result["family"] == "baseline"), None)
        variant = members[0].get("variant", "")
        of_variant = [result for result in [*controls, *results] if result.get("variant", "") == variant]
        clean = next((r for r in of_variant if r.get("control") == "clean"), None)
        clean = clean or next((r for r in of_variant if not r.get("control") and _is_clean(r)), None)
        empty = next((r for r in of_variant if r.get("control") == "empty"), None)
        random = _random_control(of_variant)
        evidence = Evidence(baseline, clean, empty, random, variant in controlled, scores, settings)
        analysed.append(_analyze_group(group, members, evidence))
    return {
        "floor": settings.min_clean_f1,
        "wished": settings.target_difference,
        "warnings": joined_findings([*results, *controls]),
        "groups": analysed,
        "coverage": coverage(analysed),
        "atlas": make_atlas(results, analysed, scores) if len(analysed) > 1 else None,
        "auto": judge_auto(analysed, scores),
    }


def coverage(groups: list[dict[str, Any]]) -> dict[str, int]:
    """Return the number of configurations and their numbers of examples, which a budget makes unequal."""
    counts = [row["num_samples"] for group in groups for row in group["ranking"]]
    most = max(counts, default=0)
    return {
        "configurations": len(counts),
        "most": most,
        "fewest": min(counts, default=0),
        "fewer": sum(count < most for count in counts),
    }


def _random_control(results: list[Result]) -> Result | None:
    """Return the first result of random tokens with the most examples, or None."""
    random = [result for result in results if result["family"] == RANDOM]
    return max(random, key=lambda result: int(result["num_samples"]), default=None)


def _is_clean(result: Result) -> bool:
    """Return whether a result is the baseline on text, the upper control."""
    return (result["source"], result["family"]) == ("text", "baseline")


def _analyze_group(group: str, results: list[Result], evidence: Evidence) -> dict[str, Any]:
    """Return the analysis of one source."""
    # A budget gives weaker configurations fewer examples; they rank behind the others.
    ranked = sorted(results, key=lambda result: (-result["num_samples"], -result["f1"], result["name"]))
    baseline, scores = evidence.baseline, evidence.scores
    compared = [r["name"] for r in ranked if r is not baseline and not r["identity"]]
    comparisons = compare_with_baseline(compared, evidence)
    shares = recovered([result["name"] for result in ranked], evidence)
    sd_of = difference_stds(list(comparisons), evidence)
    rows = [
        _row(result, comparisons.get(result["name"]))
        | shares[result["name"]]
        | detectable(sd_of.get(result["name"]), len(scores[result["name"]][0]), len(comparisons))
        for result in ranked
    ]
    controls = group_controls(results, evidence)
    can_answer, reason = answerable(controls, evidence.settings.min_clean_f1)
    needed = {"the clean control": evidence.clean, "the empty context (lower control)": evidence.empty}
    missing = [control for control, result in needed.items() if result is None]
    if evidence.controlled and missing:
        can_answer, reason = False, f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing or failed"
    winners = [row for row in rows if _may_win(row, ranked[0]["num_samples"], evidence)] if reason is None else []
    level = _level_with(winners[0]["name"], [row["name"] for row in winners[1:]], evidence) if winners else []
    best: dict[str, Any] = {}
    for row in rows:
        best.setdefault(row["family"], row)
    return {
        "group": group,
        "source": results[0]["source"],
        "num_samples": max(result["num_samples"] for result in ranked),
        "baseline_f1": baseline["f1"] if baseline else None,
        "answerable": can_answer,
        "reason": reason,
        "controls": controls,
        "power": power(list(sd_of.values()), baseline, evidence.settings.target_difference),
        "ranking": rows,
        "best_of_family": list(best.values()),
        "dial_means": _dial_means(results),
        "reached_80_percent": sum(row["f1"] >= 0.8 * baseline["f1"] - 1e-12 for row in rows) if baseline else None,
        "more_than_half_empty": sum(row["empty_rate"] > 0.5 for row in rows),
        "observations": _observations(baseline, rows, winners, level, reason),
        **(_verdict(baseline, rows, winners, level) if reason is None else _no_answer(reason)),
    }


def _may_win(row: dict[str, Any], most: int, evidence: Evidence) -> bool:
    """Return whether a configuration can win: better than the baseline and the empty context, and not a control."""
    if row["verdict"] != "better" or row["supervised"] or row["family"] == RANDOM:
        return False
    return row["num_samples"] == most and above_empty(row["name"], evidence)


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
            "num_samples",
        )
    }
    row["warnings"] = result.get("warnings", [])
    row["supervised"] = is_supervised(result)
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


def _level_with(best: str, others: list[str], evidence: Evidence) -> list[str]:
    """Return the configurations within noise of the best one, on the examples that both answered."""
    found: dict[str, Difference] = {}
    for members, _ in evidence.families(others):
        ids = evidence.scores[members[0]][0]
        ids = ids if len(ids) <= len(evidence.scores[best][0]) else evidence.scores[best][0]
        reference = evidence.on(best, ids)
        own = [evidence.on(name, ids) for name in members]
        if reference is not None:
            systems = np.stack([scores for scores in own if scores is not None])
            found |= zip(members, paired_bootstrap(systems, reference, SEED), strict=True)
    compared = zip(found, corrected(list(found.values())), strict=True)
    return [name for name, comparison in compared if comparison.p_holm >= SIGNIFICANT]


def _dial_means(results: list[Result]) -> list[dict[str, Any]]:
    """Return the mean F1 at each value of each varied dial, by family."""
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
    baseline: Result | None,
    rows: list[dict[str, Any]],
    winners: list[dict[str, Any]],
    level: list[str],
    reason: str | None,
) -> list[dict[str, str]]:
    """Return the five observations, each with "yes", "no", or why the results do not decide it."""
    if baseline is None:
        holds = "unknown: no baseline among the results"
    else:
        low, high = baseline["f1_interval"]
        interval = f"{format_score(baseline['f1'])} [{format_score(low)}, {format_score(high)}]"
        holds = "yes" if low > 0.5 else "no" if high < 0.5 else "undecided, the interval contains .5"
        holds += f": {interval}"
    table = [("Baseline F1 > 0.5", "the LM can use these embeddings", "look at the encoder's distribution", holds)]
    top = {winners[0]["name"], *level} if winners else set()
    for family, (observation, meaning, action) in WINNERS.items():
        members = [row for row in rows if row["family"] == family]
        winning = [row["experiment"] for row in members if row["name"] in top]
        if not members:
            holds = "unknown: not in this sweep"
        elif baseline is None:
            holds = "unknown: no baseline among the results"
        elif reason is not None:
            holds = "unknown: the controls show that nothing can be ranked"
        elif winning:
            others = len(top) - len(winning)
            holds = f"yes: {winning[0]}" + (f", level with {others} of other families" if others else "")
        elif any(row["verdict"] == "better" for row in members):
            behind = f"behind {winners[0]['experiment']}" if winners else "not clearly above an empty context"
            holds = f"no: better than the baseline, but {behind}"
        elif all(row["verdict"] == "identity" for row in members):
            holds = "no: changed nothing on this source"
        elif all(row["verdict"] in ("worse", "identity") for row in members):
            holds = "no: worse than the baseline"
        else:
            holds = "undecided: within noise of the baseline"
        table.append((observation, meaning, action, holds))
    highest = max(row["f1_interval"][1] for row in rows)
    holds = f"yes: no interval reaches {format_score(DEAD)}" if highest < DEAD else "no"
    if highest >= DEAD and all(row["f1"] < DEAD for row in rows):
        holds = f"nearly: no F1 reaches {format_score(DEAD)}"
    table.append(("Everything fails", "inputs_embeds broken, or no repair works", "debug the generation set-up",
                  holds))  # fmt: skip
    return [
        {"observation": observation, "meaning": meaning, "action": action, "holds": holds}
        for observation, meaning, action, holds in table
    ]


def _no_answer(reason: str) -> dict[str, Any]:
    return {
        "winner": None,
        "verdict": f"This model, prompt and data cannot answer the question: {reason}. No winner is named.",
        "next": "Choose a model that uses the passages (model=...), more shots, or other data. "
        "If the controls are close together, raise samples.",
    }


def _verdict(
    baseline: Result | None, rows: list[dict[str, Any]], winners: list[dict[str, Any]], level: list[str]
) -> dict[str, Any]:
    """Return the winner if the comparisons show one, the verdict, and the next step."""
    if baseline is None:
        return {
            "winner": None,
            "verdict": "These results have no baseline to compare with.",
            "next": "Include it: only='baseline|...'.",
        }
    worse = sum(row["verdict"] == "worse" for row in rows)
    compared = sum("p_holm" in row for row in rows)
    if not winners:
        verdict = "No winner: every difference from the baseline is within noise."
        if worse:
            verdict = f"No winner: {worse} of {compared} configurations are worse than the baseline, none is better."
        if better := [row["experiment"] for row in rows if row["verdict"] == "better"]:
            verdict = (
                f"No winner: only {', '.join(better[:4])} {'is' if len(better) == 1 else 'are'} better than the "
                "baseline, and each is a control, has fewer examples, or is not clearly above an empty context."
            )
        if baseline["source"] == "text":
            advice = "The LM already reads its own tokens. Choose a source that it cannot read, such as "
            advice += "embed_source=scaled or embed_source=noisy."
        else:
            advice = "Integrate nothing on this evidence; more samples could show smaller differences."
        return {"winner": None, "verdict": verdict, "next": advice}
    best = winners[0]
    dials = " ".join(f"{dial}={value}" for dial, value in best["dials"].items())
    tied = [row["experiment"] for row in winners if row["name"] in level]
    ties = f", level with {', '.join(tied[:4])}{' and more' if len(tied) > 4 else ''}" if tied else ""
    return {
        "winner": best["name"],
        "verdict": f"{best['experiment']} is best: F1 {format_score(best['f1'])}, baseline "
        f"{format_score(baseline['f1'])}{ties}.",
        "next": f"Integrate embed_transform={best['family']} {dials}".rstrip()
        + (", or the cheapest configuration level with it" if level else "")
        + "; confirm it first on more examples (samples=...).",
    }
