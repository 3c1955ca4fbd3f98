"""The answer of the experiment: reduces, does not matter, not shown, or no verdict. Main entry: `collapse_result()`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kat.collapse.document import sections_of
from kat.collapse.experiment import ReadExperiment
from kat.collapse.exposure import slopes_of, topic_rows
from kat.collapse.frontier import pairs_at_equal
from kat.collapse.gate import gate_checks, measure_false_positives, power_of_arms
from kat.collapse.measures import CONTEXT, KL, MEASURES, QUALITY
from kat.collapse.records import Answer, CollapseResult, EqualComparison, GateCheck, MeasureRow, SeedDifference
from kat.collapse.runs import BASELINE
from kat.collapse.settings import CollapseSpec
from kat.collapse.table import (
    BASE,
    SIGNIFICANCE,
    ExperimentRuns,
    RowKey,
    SeedPairs,
    compare_rows,
    find_margins,
)
from kat.collapse.words import interval_text, limits_of, p_words
from kat.diversity.report import joined
from latentwire.records import FORMAT

NAMES = {"density": "Density-aware sampling"}


def row_keys(runs: ExperimentRuns, primary: RowKey) -> list[RowKey]:
    """Return the measures and groups that are tested besides the deciding one."""
    keys = [(name, group) for name, measure in runs.measures.items() if name not in CONTEXT for group in measure.groups]
    return [key for key in keys if key != primary and runs.has(key)]


def collapse_result(folder: str, experiment: ReadExperiment, spec: CollapseSpec, seed: int) -> CollapseResult:
    """Return the verdict on an experiment with everything that the page shows.

    Args:
        folder: Folder of the experiment, as the user wrote it.
        experiment: The measured runs.
        spec: The settings.
        seed: Seed of all resampling.

    Raises:
        UserError: The runs do not have the deciding measure.
    """
    runs = experiment.runs
    key = spec.primary(runs)
    others = row_keys(runs, key)
    margins = find_margins(runs, [key, *others], spec.margin_share)
    limits = {(one["measure"], one["group"]): one["margin"] for one in margins}
    (primary,), _ = compare_rows(runs, [key], limits)
    equal = {
        name: pairs_at_equal(runs, name, key, limits.get(key)) for name in (QUALITY, KL) if runs.has((name, "all"))
    }
    more: list[SeedPairs] = [pair for _, pairs in equal.values() for pair in pairs]
    measures, at_equal = compare_rows(runs, others, limits, more)
    context, _ = compare_rows(runs, [(name, "all") for name in CONTEXT if runs.has((name, "all"))], {})
    positives = measure_false_positives(runs, [key, *others], seed)
    gate = gate_checks(runs, primary, positives, spec.min_collapse)
    before, after = (primary["base"], primary["arms"][BASELINE])
    lost = abs(before["mean"] - after["mean"]) if before is not None else 0.0
    found = next(one for one in primary["differences"] if one["arm"] == spec.arm)
    answer = answer_of(found, primary["direction"], gate)
    result: CollapseResult = {
        "format": FORMAT,
        "folder": folder,
        "arm": spec.arm,
        "answer": answer,
        "sentence": sentence_of(answer, found, primary, gate, lost),
        "measure": key[0],
        "group": key[1],
        "label": primary["label"],
        "steps": list(runs.any_run().steps),
        "arms": runs.arms,
        "seeds": sorted({seed for by_seed in runs.by_arm.values() for seed in by_seed}),
        "control_seeds": sorted(run.seed for run in runs.controls),
        "margin_share": spec.margin_share,
        "runs": experiment.states,
        "gate": gate,
        "primary": primary,
        "measures": measures,
        "context": context,
        "equal": _at_equal(equal, at_equal),
        "margins": margins,
        "false_positives": positives,
        "power": power_of_arms(runs, primary, spec.target_share * lost, seed) if lost else [],
        "topics": topic_rows(runs, key),
        "slopes": slopes_of(runs, key),
        "warnings": experiment.warnings,
        "limits": limits_of(runs, key, spec),
        "sections": [],
    }
    return {**result, "sections": sections_of(result, runs)}


def _at_equal(
    equal: Mapping[str, tuple[float, Sequence[SeedPairs]]], tested: Sequence[SeedDifference]
) -> list[EqualComparison]:
    """Return the comparisons at equal reward and KL. `tested` has their usable pairs in the same order."""
    left = iter(tested)
    return [
        {"at": name, "level": level, "differences": [next(left) for pair in pairs if len(pair.seeds) > 1]}
        for name, (level, pairs) in equal.items()
    ]


def answer_of(found: SeedDifference, direction: int, gate: Sequence[GateCheck]) -> Answer:
    """Return the answer about an arm.

    Args:
        found: Its difference from the baseline in the deciding measure.
        direction: 1 if a higher value of that measure is more diverse, -1 if a lower one is.
        gate: The conditions of a verdict.
    """
    if any(check["passed"] is False for check in gate):
        return "no_verdict"
    if found["equivalence"] is not None and found["equivalence"]["p_holm"] < SIGNIFICANCE:
        return "equivalent"
    low, high = found["interval"]
    p = found["p_holm"]
    if p is None or p >= SIGNIFICANCE or low <= 0 <= high:
        return "not_shown"
    return "reduces" if found["difference"] * direction > 0 else "increases"


def sentence_of(
    answer: Answer, found: SeedDifference, primary: MeasureRow, gate: Sequence[GateCheck], lost: float
) -> str:
    """Return the answer in one sentence with its interval.

    Args:
        answer: The answer.
        found: The arm's difference from the baseline.
        primary: The deciding measure.
        gate: The conditions of a verdict.
        lost: What the baseline loses from the base model.
    """
    arm, n = found["arm"], len(found["seeds"])
    name = NAMES.get(arm, f"The arm {arm}")
    if answer == "no_verdict":
        failed = joined(check["name"] for check in gate if check["passed"] is False)
        return f"No verdict: the gate failed ({failed}); {_difference(found, primary)}."
    share = f", {abs(found['difference']) / lost:.0%} of what uniform sampling loses from the {BASE}" if lost else ""
    tests = f"{n} seeds, 95% interval, {p_words(found)}"
    if answer in ("reduces", "increases"):
        return f"{name} {answer} mode collapse: {_difference(found, primary)}{share} ({tests})."
    if answer == "equivalent" and found["equivalence"] is not None:
        margin = found["equivalence"]["margin"]
        low, high = found["equivalence"]["interval"]
        return (f"{name} does not matter for mode collapse: {_difference(found, primary)}, and the 90% interval "
                f"[{low:+.3f}, {high:+.3f}] is within the margins of {margin:.3f} ({tests}, p of equivalence "
                f"{found['equivalence']['p_holm']:.4f}).")  # fmt: skip
    rest = ""
    if found["equivalence"] is not None:
        rest = f", nor is it shown to be smaller than the margin of {found['equivalence']['margin']:.3f}"
    return f"{name} is not shown to change mode collapse: {_difference(found, primary)} ({tests}){rest}."


def _difference(found: SeedDifference, primary: MeasureRow) -> str:
    by = interval_text(found["difference"], found["interval"], sign=True)
    return f"with {found['arm']} the {MEASURES[primary['measure']].label} differs from uniform sampling by {by}"
