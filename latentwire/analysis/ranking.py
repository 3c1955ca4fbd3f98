"""Ranking, observations and verdict for each source of a sweep. Main entry: `analyze()`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentwire.analysis.auto_goal import judge_auto
from latentwire.analysis.comparisons import (
    Spread,
    across_sources,
    corrected_over_sources,
    differences,
    power,
    recovered,
    spreads,
)
from latentwire.analysis.controls import (
    BASELINE,
    RANDOM,
    AnalysisSettings,
    ById,
    Evidence,
    above_empty,
    answerable,
    group_controls,
    is_clean,
    is_supervised,
)
from latentwire.analysis.draws import between_draws
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
from latentwire.analysis.selected import level_with, selected
from latentwire.analysis.suspicions import leaking
from latentwire.analysis.verdict import Ranked, conclude, observe
from latentwire.records import ScoredResult, ShownMetric, SummaryResult, succeeded
from latentwire.stats.clusters import SampledClusters
from latentwire.stats.comparison import Comparison, PairedDifference
from latentwire.stats.power import ALPHA

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
    sources = _sources(results, scores, controls, settings, metric)
    compared = {source.group: source.compared() for source in sources}
    count = sum(len(names) for names in compared.values())
    found = {source.group: differences(compared[source.group], source.evidence, count) for source in sources}
    comparisons = corrected_over_sources(found)
    testable = sum(difference.testable for own in found.values() for difference in own.values())
    analysed = [_analyze_group(source, comparisons, testable) for source in sources]
    first = [source for source in sources if source.is_first_draw()]
    of_first = [group for group, source in zip(analysed, sources, strict=True) if source in first]
    contenders = {name for source in first for name in source.contenders()}
    every = [result for source in first for result in source.members]
    evidence = {source.group: source.evidence for source in first}
    return {
        "metric": metric,
        "min_clean_score": settings.min_clean_score,
        "target_difference": settings.target_difference,
        "warnings": joined_findings([*results, *(control for control in controls if succeeded(control))]),
        "groups": analysed,
        "coverage": coverage(analysed),
        "across": across_sources(_by_source(first, found), contenders),
        "draws": between_draws([result for source in sources for result in source.members], analysed),
        "atlas": make_atlas(every, of_first, evidence, ladders) if len(of_first) > 1 else None,
        "auto": judge_auto(of_first, scores, metric),
    }


@dataclass(frozen=True)
class _SourceResults:
    """The results of one source, with what they are compared with."""

    group: str
    members: list[ScoredResult]  # with the baseline, even if the sweep ran it as a control
    evidence: Evidence

    def is_first_draw(self) -> bool:
        """Return whether the results are of the first draw of the shots and sources, or of the only one."""
        return self.members[0].get("draw", 0) == 0

    def compared(self) -> list[str]:
        """Return the names of the results that are compared with the baseline."""
        return [r["name"] for r in self.members if r["family"] != BASELINE and not r["identity"]]

    def contenders(self) -> list[str]:
        """Return the names of the results with the most examples among which the best is chosen."""
        most = max(result["num_samples"] for result in self.members)
        leaks = leaking(self.members)
        return [
            r["name"]
            for r in self.members
            if r["family"] not in (BASELINE, RANDOM) and not is_supervised(r)
            if r["num_samples"] == most and r["name"] not in leaks
        ]


def _sources(
    results: Sequence[ScoredResult],
    scores: dict[str, ById],
    controls: Sequence[SummaryResult],
    settings: AnalysisSettings,
    metric: ShownMetric,
) -> list[_SourceResults]:
    """Return the results of each source with its baseline and controls, in the order run."""
    groups: dict[str, list[ScoredResult]] = defaultdict(list)
    for result in results:
        groups[result["group"]].append(result)
    controlled = {control["variant"] for control in controls}
    usable = [control for control in controls if succeeded(control)]
    found = []
    for group, members in groups.items():
        variant = members[0]["variant"]
        of_variant = [result for result in [*usable, *results] if result["variant"] == variant]
        own = [r for r in usable if r["control"] == BASELINE and r["group"] == group]
        baseline = next((result for result in [*members, *own] if result["family"] == BASELINE), None)
        clean = next((r for r in of_variant if r["control"] == "clean"), None)
        evidence = Evidence(
            baseline=baseline,
            clean=clean or next((r for r in of_variant if r["control"] in (None, BASELINE) and is_clean(r)), None),
            empty=next((r for r in of_variant if r["control"] == "empty"), None),
            random=_random_control(of_variant),
            scrambled=next((r for r in usable if r["control"] == "scrambled" and r["group"] == group), None),
            controlled=variant in controlled,
            scores=scores,
            settings=settings,
            metric=metric,
        )
        with_baseline = members if baseline is None or baseline in members else [baseline, *members]
        found.append(_SourceResults(group, with_baseline, evidence))
    return found


def _by_source(
    sources: Sequence[_SourceResults], found: dict[str, dict[str, PairedDifference]]
) -> dict[str, dict[str, PairedDifference]]:
    """Return the differences of each source; models, seeds and other varied settings of one source come together."""
    joined: dict[str, dict[str, PairedDifference]] = defaultdict(dict)
    for source in sources:
        some = source.members[0]
        joined[json.dumps([some["source"], some["source_dials"]], sort_keys=True)] |= found[source.group]
    return dict(joined)


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


def _analyze_group(source: _SourceResults, comparisons: dict[str, Comparison], testable: int) -> GroupAnalysis:
    """Return the analysis of one source.

    Args:
        source: Its results.
        comparisons: Comparisons of all sources, by name of the result.
        testable: Number of comparisons of the sweep that a test can decide.
    """
    results, evidence, contenders = source.members, source.evidence, source.contenders()
    of_contenders = spreads([name for name in contenders if name in comparisons], evidence)
    rows = _ranking(results, evidence, comparisons, of_contenders, testable)
    examples = max((evidence.scores[result["name"]] for result in results), key=lambda own: len(own.ids))
    scored = None if evidence.baseline is None else evidence.score(evidence.baseline["name"])
    baseline = None if scored is None else scored[0]
    controls = group_controls(results, evidence)
    can_answer, reason = answerable(controls, evidence.settings.min_clean_score, evidence.metric)
    needed = {"the clean control": evidence.clean, "the empty context (lower control)": evidence.empty}
    missing = [control for control, result in needed.items() if result is None]
    if evidence.controlled and missing:
        can_answer, reason = False, f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing or failed"
    winners = [row for row in rows if _may_win(row, contenders, evidence)] if reason is None else []
    ranked_contenders = [row for row in rows if row["name"] in contenders]
    for row in [*winners[:1], *ranked_contenders[:1]]:
        # The highest score was chosen among all. A winner that is not the highest was chosen among those behind it.
        row["cross_fit"] = selected(row["name"], _from(row, ranked_contenders), evidence)
    others = [row["name"] for row in ranked_contenders if row not in winners[:1] and not row["identity"]]
    level = level_with(winners[0]["name"], others, evidence) if winners else []
    ranked = Ranked(evidence.baseline, scored, rows, evidence.metric, reason, winners, level)
    effects = [spread.design_effect for spread in of_contenders.values()]
    return {
        "group": source.group,
        "source": results[-1]["source"],
        "num_samples": len(examples.ids),
        "passages": SampledClusters(examples.passages).count,
        "design_effect": float(np.median(effects)) if effects else None,
        "baseline_score": baseline,
        "answerable": can_answer,
        "reason": reason,
        "controls": controls,
        "power": power(list(of_contenders.values()), testable, evidence.baseline, evidence.settings.target_difference),
        "ranking": rows,
        "best_of_family": _best_of_family(rows, evidence),
        "dial_means": _dial_means(results, evidence),
        "reached_80_percent": None if baseline is None else sum(row["score"] >= 0.8 * baseline - 1e-12 for row in rows),
        "more_than_half_empty": sum(row["empty_rate"] > 0.5 for row in rows),
        "observations": observe(ranked),
        "confirm_command": None,
        "confirmation": None,
        **conclude(ranked),
    }


def _best_of_family(rows: Sequence[RankingRow], evidence: Evidence) -> list[RankingRow]:
    """Return the best row of each family, with its cross-fit score among the family's rows of as many examples."""
    families: dict[str, list[RankingRow]] = defaultdict(list)
    for row in rows:
        families[row["family"]].append(row)
    found = []
    for members in families.values():
        names = [row["name"] for row in members if row["num_samples"] == members[0]["num_samples"]]
        found.append(members[0] | {"cross_fit": selected(names[0], names, evidence)})
    return found


def _ranking(
    results: list[ScoredResult],
    evidence: Evidence,
    comparisons: dict[str, Comparison],
    spread_of: dict[str, Spread],
    testable: int,
) -> list[RankingRow]:
    """Return the rows of a ranking."""
    # A budget gives weaker configurations fewer examples; they rank behind the others.
    ranked = sorted(results, key=lambda r: (-r["num_samples"], -evidence.score(r["name"])[0], r["name"]))
    shares = recovered([result["name"] for result in ranked], evidence)
    rows = []
    for result in ranked:
        name = result["name"]
        row = _row(result, comparisons.get(name), evidence)
        row["recovered"], row["recovered_interval"] = shares[name]
        if (spread := spread_of.get(name)) is not None:
            row["detectable"] = spread.detectable(ALPHA)
            row["detectable_corrected"] = spread.detectable(ALPHA / max(1, testable))
        rows.append(row)
    return rows


def _from(row: RankingRow, rows: Sequence[RankingRow]) -> list[str]:
    """Return the names of a row and of those behind it."""
    names = [other["name"] for other in rows]
    return names[names.index(row["name"]) :]


def _may_win(row: RankingRow, contenders: Sequence[str], evidence: Evidence) -> bool:
    """Return whether a configuration can win: a contender, better than the baseline and the empty context."""
    return row["verdict"] == "better" and row["name"] in contenders and above_empty(row["name"], evidence)


def _row(result: ScoredResult, comparison: Comparison | None, evidence: Evidence) -> RankingRow:
    """Return the row of a configuration, still without its recovered share and detectable differences."""
    score, interval = evidence.score(result["name"])
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
        "num_samples": len(evidence.scores[result["name"]].ids),
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
        "cross_fit": None,
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


def _numbers_first(entry: tuple[Any, list[float]]) -> tuple[bool, float, str]:
    """Return what orders the values of a dial: numbers by size, then texts and None."""
    is_number = isinstance(entry[0], int | float)
    return not is_number, entry[0] if is_number else 0.0, str(entry[0])


def _dial_means(results: list[ScoredResult], evidence: Evidence) -> list[DialMeans]:
    """Return the mean score at each value of each varied dial, by family."""
    by: dict[tuple[str, str], dict[Any, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        for dial, value in result["dials"].items():
            by[result["family"], dial][value].append(evidence.score(result["name"])[0])
    return [
        {
            "family": family,
            "dial": dial,
            "means": [
                {"value": value, "score": float(np.mean(scores)), "configurations": len(scores)}
                for value, scores in sorted(values.items(), key=_numbers_first)
            ],
        }
        for (family, dial), values in by.items()
        if len(values) > 1
    ]
