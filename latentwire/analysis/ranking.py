"""Ranking, observations and verdict for each source of a sweep. Main entry: `analyze()`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from latentwire.analysis.auto_goal import judge_auto
from latentwire.analysis.controls import (
    BASELINE,
    RANDOM,
    SEED,
    AnalysisSettings,
    ById,
    Evidence,
    above_empty,
    answerable,
    compare_with_baseline,
    difference_stds,
    group_controls,
    is_clean,
    is_supervised,
    power,
    recovered,
    score_of,
)
from latentwire.analysis.findings import joined_findings
from latentwire.analysis.ladder import Ladder
from latentwire.analysis.matrix import make_atlas
from latentwire.analysis.records import (
    Analysis,
    Coverage,
    DialMeans,
    GroupAnalysis,
    RankingRow,
    Verdict,
)
from latentwire.analysis.verdict import Ranked, conclude, observe
from latentwire.records import ScoredResult, ShownMetric, SummaryResult, succeeded
from latentwire.stats.comparison import Comparison, corrected, paired_bootstrap
from latentwire.stats.intervals import Difference
from latentwire.stats.power import ALPHA, detectable_difference

SIGNIFICANT = ALPHA  # for Holm-corrected p-values


def analyze(
    results: Sequence[ScoredResult],
    scores: dict[str, ById],
    controls: Sequence[SummaryResult],
    settings: AnalysisSettings,
    metric: ShownMetric,
    ladders: Sequence[Ladder],
) -> Analysis:
    """Analyse the successful results of a sweep, source by source.

    Args:
        results: Successful results, without controls.
        scores: Example ids and scores of each result and successful control, by its name: the primary metric in
            [0, 1], oriented so that higher is better.
        controls: Controls of the sweep, including failed ones. A baseline on text among the results is also a clean
            control.
        settings: Settings of the analysis.
        metric: The primary metric. Each result has its mean and interval under `scores`.
        ladders: Ladders of the sources.

    Returns:
        For each source its controls, ranking with comparisons, means by dial, observations and verdict; the findings
        of the detectors, the matrix and tolerances of several sources, and the check of the automatic repair. Other
        varied settings, such as the seed, make groups of their own.
    """
    groups: dict[str, list[ScoredResult]] = defaultdict(list)
    for result in results:
        groups[result["group"]].append(result)
    controlled = {control["variant"] for control in controls}
    usable = [control for control in controls if succeeded(control)]
    analysed = []
    for group, members in groups.items():
        variant = members[0]["variant"]
        of_variant = [result for result in [*usable, *results] if result["variant"] == variant]
        clean = next((r for r in of_variant if r["control"] == "clean"), None)
        evidence = Evidence(
            baseline=next((result for result in members if result["family"] == BASELINE), None),
            clean=clean or next((r for r in of_variant if r["control"] is None and is_clean(r)), None),
            empty=next((r for r in of_variant if r["control"] == "empty"), None),
            random=_random_control(of_variant),
            controlled=variant in controlled,
            scores=scores,
            settings=settings,
            metric=metric,
        )
        analysed.append(_analyze_group(group, members, evidence))
    return {
        "metric": metric,
        "min_clean_score": settings.min_clean_score,
        "target_difference": settings.target_difference,
        "warnings": joined_findings([*results, *usable]),
        "groups": analysed,
        "coverage": coverage(analysed),
        "atlas": make_atlas(results, analysed, scores, ladders, metric) if len(analysed) > 1 else None,
        "auto": judge_auto(analysed, scores, metric),
    }


def coverage(groups: Sequence[GroupAnalysis]) -> Coverage:
    """Return the number of configurations and their numbers of examples, which a budget makes unequal."""
    counts = [row["num_samples"] for group in groups for row in group["ranking"]]
    most = max(counts, default=0)
    return {
        "configurations": len(counts),
        "most": most,
        "fewest": min(counts, default=0),
        "fewer": sum(count < most for count in counts),
    }


def _random_control(results: Sequence[ScoredResult]) -> ScoredResult | None:
    """Return the first result of random tokens with the most examples, or None."""
    random = [result for result in results if result["family"] == RANDOM]
    return max(random, key=lambda result: result["num_samples"], default=None)


def _analyze_group(group: str, results: list[ScoredResult], evidence: Evidence) -> GroupAnalysis:
    """Return the analysis of one source."""
    rows, sds = _ranking(results, evidence)
    most = max(row["num_samples"] for row in rows)
    baseline = None if evidence.baseline is None else score_of(evidence.baseline, evidence.metric)[0]
    controls = group_controls(results, evidence)
    can_answer, reason = answerable(controls, evidence.settings.min_clean_score, evidence.metric)
    needed = {"the clean control": evidence.clean, "the empty context (lower control)": evidence.empty}
    missing = [control for control, result in needed.items() if result is None]
    if evidence.controlled and missing:
        can_answer, reason = False, f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing or failed"
    winners = [row for row in rows if _may_win(row, most, evidence)] if reason is None else []
    level = _level_with(winners[0]["name"], [row["name"] for row in winners[1:]], evidence) if winners else []
    ranked = Ranked(evidence.baseline, rows, evidence.metric, reason, winners, level)
    best: dict[str, RankingRow] = {}
    for row in rows:
        best.setdefault(row["family"], row)
    return {
        "group": group,
        "source": results[0]["source"],
        "num_samples": most,
        "baseline_score": baseline,
        "answerable": can_answer,
        "reason": reason,
        "controls": controls,
        "power": power(sds, evidence.baseline, evidence.settings.target_difference),
        "ranking": rows,
        "best_of_family": list(best.values()),
        "dial_means": _dial_means(results, evidence.metric),
        "reached_80_percent": None if baseline is None else sum(row["score"] >= 0.8 * baseline - 1e-12 for row in rows),
        "more_than_half_empty": sum(row["empty_rate"] > 0.5 for row in rows),
        "observations": observe(ranked),
        **conclude(ranked),
    }


def _ranking(results: list[ScoredResult], evidence: Evidence) -> tuple[list[RankingRow], list[float]]:
    """Return the rows of a ranking, and the standard deviation of the paired differences of each compared one."""
    # A budget gives weaker configurations fewer examples; they rank behind the others.
    ranked = sorted(results, key=lambda r: (-r["num_samples"], -score_of(r, evidence.metric)[0], r["name"]))
    compared = [r["name"] for r in ranked if r is not evidence.baseline and not r["identity"]]
    comparisons = compare_with_baseline(compared, evidence)
    shares = recovered([result["name"] for result in ranked], evidence)
    sd_of = difference_stds(list(comparisons), evidence)
    rows = []
    for result in ranked:
        name = result["name"]
        row = _row(result, comparisons.get(name), evidence.metric)
        row["recovered"], row["recovered_interval"] = shares[name]
        if sd := sd_of.get(name):  # a standard deviation of 0 gives no estimate for other differences
            count = len(evidence.scores[name][0])
            row["detectable"] = detectable_difference(sd, count, ALPHA)
            row["detectable_corrected"] = detectable_difference(sd, count, ALPHA / len(comparisons))
        rows.append(row)
    return rows, list(sd_of.values())


def _may_win(row: RankingRow, most: int, evidence: Evidence) -> bool:
    """Return whether a configuration can win: better than the baseline and the empty context, and not a control."""
    if row["verdict"] != "better" or row["supervised"] or row["family"] == RANDOM:
        return False
    return row["num_samples"] == most and above_empty(row["name"], evidence)


def _row(result: ScoredResult, comparison: Comparison | None, metric: ShownMetric) -> RankingRow:
    """Return the row of a configuration, still without its recovered share and detectable differences."""
    score, interval = score_of(result, metric)
    row: RankingRow = {
        "name": result["name"],
        "experiment": result["experiment"],
        "family": result["family"],
        "dials": result["dials"],
        "score": score,
        "score_interval": interval,
        "f1": result["f1"],
        "em": result["em"],
        "empty_rate": result["empty_rate"],
        "identity": result["identity"],
        "num_samples": result["num_samples"],
        "warnings": result["warnings"],
        "supervised": is_supervised(result),
        "verdict": _verdict(result, comparison),
        "difference": None,
        "difference_interval": None,
        "p_value": None,
        "p_holm": None,
        "recovered": None,
        "recovered_interval": None,
        "detectable": None,
        "detectable_corrected": None,
    }
    if comparison is not None and result["family"] != BASELINE:
        row["difference"], row["difference_interval"] = comparison.difference, comparison.interval
        row["p_value"], row["p_holm"] = comparison.p_value, comparison.p_holm
    return row


def _verdict(result: ScoredResult, comparison: Comparison | None) -> Verdict:
    """Return how a configuration compares with the baseline."""
    if result["family"] == BASELINE:
        return "baseline"
    if result["identity"]:
        return "identity"
    if comparison is None:
        return "not compared"
    if comparison.p_holm >= SIGNIFICANT:
        return "within noise"
    return "better" if comparison.difference > 0 else "worse"


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


def _dial_means(results: list[ScoredResult], metric: ShownMetric) -> list[DialMeans]:
    """Return the mean score at each value of each varied dial, by family."""
    by: dict[tuple[str, str], dict[Any, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        for dial, value in result["dials"].items():
            by[result["family"], dial][value].append(score_of(result, metric)[0])
    return [
        {
            "family": family,
            "dial": dial,
            "means": [
                {"value": value, "score": float(np.mean(scores)), "configurations": len(scores)}
                for value, scores in sorted(values.items())
            ],
        }
        for (family, dial), values in by.items()
        if len(values) > 1
    ]
