"""Detectors that read all finished results of a sweep and their answers. Main entries: `suspicions()`, `leaking()`.

A detector takes a `FinishedSweep` and returns findings by the name of the result. Detectors of answers are in
`odd_answers`, detectors of equal results in `equal_results`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from latentwire.analysis.controls import LARGEST, SEED, is_clean, score_of
from latentwire.analysis.equal_results import dial_without_effect, same_answers, source_dial_without_effect
from latentwire.analysis.findings import finding
from latentwire.analysis.finished import Answered, FinishedSweep
from latentwire.analysis.odd_answers import answers_of_others, half_odd, odd_halves, wrong_references
from latentwire.records import ExampleRow, Finding, ScoredResult, ShownMetric
from latentwire.stats.comparison import holm, paired_differences
from latentwire.stats.formatting import format_score
from latentwire.stats.power import ALPHA

# A wrong passage scored F1 .003 on short_qa and no passage .004 (n = 200): words such as "to" match by chance. Where
# answers are less varied, chance matches more, so a leak must also reach this share of the way to clean text.
LEAK = 0.05
KINDS = frozenset(
    {"leaks", "above_clean", "no_effect", "same_answers", "answers_of_another", "wrong_references"}
    | {"half_empty", "half_alike", "cut_off"}
)  # kinds of all findings of this module: an analysis that is made again replaces them


def suspicions(
    results: Iterable[ScoredResult], rows: Mapping[str, Sequence[ExampleRow]], metric: ShownMetric
) -> dict[str, list[Finding]]:
    """Return what the finished results of a sweep show to be probably wrong, by name of the result.

    Args:
        results: Successful results, including controls.
        rows: Answers of each result, by its name.
        metric: The primary metric.
    """
    sweep = FinishedSweep([Answered(result, rows[result["name"]]) for result in results], metric)
    detectors = (leaks, above_clean, dial_without_effect, source_dial_without_effect, same_answers)
    found: dict[str, list[Finding]] = {}
    for detector in (*detectors, answers_of_others, wrong_references, half_odd):
        for name, findings in detector(sweep).items():
            found.setdefault(name, []).extend(findings)
    return found


def leaking(results: Iterable[ScoredResult]) -> set[str]:
    """Return the names of results whose score does not come from the passage, which therefore may not win."""
    return {result["name"] for result in results if any(one["kind"] == "leaks" for one in result["warnings"])}


def leaks(sweep: FinishedSweep) -> dict[str, list[Finding]]:
    """Return a warning for each transform whose scrambled control is clearly above the empty context.

    The scrambled control gives source and transform the passage of another example. The test is paired by example and
    corrected for all scrambled controls of the sweep. The warning is for all configurations of the family on that
    source, because they share the code that leaks, but only one of them has a scrambled control.
    """
    tested: list[tuple[Answered, float, float, float, str]] = []  # control, gain, low end, p-value, message
    for one in sweep.answered:
        empty, clean = sweep.control("empty", one), sweep.clean(one)
        if one.result["control"] != "scrambled" or empty is None:
            continue
        ids = one.common(empty)
        if not ids:
            continue
        own, lower = sweep.scores(one, ids), sweep.scores(empty, ids)
        (difference,) = paired_differences(own[None], lower, SEED, one.passages(ids), LARGEST)
        low, high = difference.interval
        label = sweep.metric["label"]
        message = (
            f"with passages of other examples, {one.result['experiment'].removeprefix('control_scrambled_')} still has "
            f"{label} {format_score(float(own.mean()))}, above the empty context by "
            f"{format_score(difference.difference)} [{format_score(low)}, {format_score(high)}]: its score does not "
            "come from the passage that it was given"
        )
        headroom = 0.0 if clean is None else score_of(clean.result, sweep.metric)[0] - float(lower.mean())
        tested.append((one, difference.difference - LEAK * headroom, low, difference.p_value, message))
    found: dict[str, list[Finding]] = {}
    corrected = holm(np.array([p_value for _, _, _, p_value, _ in tested]))
    for (one, gain, low, _, message), p_value in zip(tested, corrected, strict=True):
        if low > 0 and gain > 0 and p_value < ALPHA:
            same = [o for o in sweep.groups[one.result["group"]] if o.result["family"] == one.result["family"]]
            for name in (one.name, *(other.name for other in same)):
                found[name] = [finding("leaks", "warning", message)]
    return found


def above_clean(sweep: FinishedSweep) -> dict[str, list[Finding]]:
    """Return a warning for each result that is above its clean control beyond noise.

    A repair can at best restore the clean text. The test is paired by example and corrected for all results of the
    sweep, so a sound sweep gives a warning in at most ALPHA / 2 of the cases. Clean controls with odd answers of
    their own give no upper bound and are left out.
    """
    compared = 0
    higher: list[tuple[str, float, str]] = []  # name, p-value, message
    for one in sweep.answered:
        clean = sweep.clean(one)
        if clean is None or one.result["control"] is not None or is_clean(one.result) or one.result["identity"]:
            continue
        ids = one.common(clean)
        if not ids or odd_halves(clean):
            continue
        compared += 1
        own, upper = sweep.scores(one, ids), sweep.scores(clean, ids)
        if own.mean() <= upper.mean():
            continue
        (difference,) = paired_differences(own[None], upper, SEED, one.passages(ids), LARGEST)
        low, high = difference.interval
        message = (
            f"scores above clean text by {format_score(difference.difference)} [{format_score(low)}, "
            f"{format_score(high)}]: a repair can at best restore it, so answers or right answers reach the model"
        )
        higher.append((one.name, difference.p_value, message))
    p_values = np.ones(compared)
    p_values[: len(higher)] = [p_value for _, p_value, _ in higher]
    return {
        name: [finding("above_clean", "warning", message)]
        for (name, _, message), p_value in zip(higher, holm(p_values), strict=False)
        if p_value < ALPHA
    }
