"""How much of each distortion a transform tolerates. Main entry: `tolerances()`."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latentwire.analysis.controls import CLEAN_SOURCE, SEED, ById, common, is_supervised, passages_of, scores_on
from latentwire.analysis.ladder import Ladder
from latentwire.analysis.records import (
    Atlas,
    GroupAnalysis,
    GroupControls,
    LadderEnd,
    LadderTolerance,
    Table,
    ToleranceRow,
)
from latentwire.records import ScoredResult, ShownMetric
from latentwire.stats.formatting import format_score
from latentwire.stats.intervals import FEW, Scores


@dataclass(frozen=True)
class _Rungs:
    """The results on one ladder."""

    ladder: Ladder
    levels: list[float]  # mild to severe
    on_ladder: dict[str, dict[float, ScoredResult]]  # experiment -> level -> result
    undistorted: dict[str, ScoredResult]  # experiment -> result on clean text; empty if no level distorts nothing

    def complete(self) -> list[str]:
        """Return the experiments with a result at each level."""
        return [experiment for experiment, found in self.on_ladder.items() if len(found) == len(self.levels)]

    def at_levels(self, experiment: str) -> list[ScoredResult]:
        """Return the results of a complete experiment, mild to severe."""
        return [self.on_ladder[experiment][level] for level in self.levels]

    def on_text(self, experiment: str) -> list[ScoredResult]:
        """Return the result on clean text, if the ladder begins there and the experiment has one."""
        return [self.undistorted[experiment]] if experiment in self.undistorted else []


def tolerances(
    results: Sequence[ScoredResult],
    groups: Sequence[GroupAnalysis],
    scores: dict[str, ById],
    ladders: Sequence[Ladder],
    metric: ShownMetric,
) -> list[LadderTolerance]:
    """Return for each ladder and transform the level at which the score falls to half of the clean control's score.

    Args:
        results: Successful results.
        groups: Analysis of each source.
        scores: Example ids and scores of each result and control, by its name.
        ladders: Ladders of the sources.
        metric: Metric of the scores.

    Returns:
        The tolerances on each ladder with at least two levels among the results.
    """
    controls_of = {group["group"]: group["controls"] for group in groups if group["controls"]}
    reason_of = {group["group"]: group["reason"] for group in groups if group["reason"]}
    found = []
    for variant in dict.fromkeys(result["variant"] for result in results):
        own = [result for result in results if result["variant"] == variant]
        controls = next((controls_of[r["group"]] for r in own if r["group"] in controls_of), None)
        if controls is None:
            continue
        for ladder in ladders:
            rungs = _rungs(ladder, own)
            if len(rungs.levels) > 1:
                on_it = [r["group"] for r in own if r["source"] == ladder.source]
                reason = next((reason_of[group] for group in on_it if group in reason_of), None)
                reason = reason or _half_is_empty(controls, scores, metric)
                found.append(_ladder_tolerance(rungs, variant, controls["clean"]["name"], scores, reason))
    return found


def _half_is_empty(controls: GroupControls, scores: dict[str, ById], metric: ShownMetric) -> str | None:
    """Return why half of the clean score is not a usable threshold, or None.

    The reason is that the model scores about as much without the passage.
    """
    clean = controls["clean"]["name"]
    for lower in controls["lower"]:
        ids = common([clean, lower["name"]], scores)
        if lower["control"] != "empty" or not ids:
            continue
        own = scores_on(ids, scores[lower["name"]])
        above = own - scores_on(ids, scores[clean]) / 2
        means = passages_of(ids, scores[clean]).resampled_means(above[None], SEED)[0]
        high = float(np.quantile(means, 0.975))
        if high >= 0:
            return (
                f"an empty context scores {metric['label']} {format_score(lower['score'])}, not clearly below half of "
                f"the clean score ({format_score(controls['clean']['score'] / 2)})"
            )
    return None


def _rungs(ladder: Ladder, results: list[ScoredResult]) -> _Rungs:
    """Return the results on a ladder; a level that distorts no more than its clean level does not count."""
    own = [(_level(r, ladder.dial), r) for r in results if r["source"] == ladder.source]
    start = -math.inf if ladder.clean is None else ladder.position(ladder.clean)
    on_ladder: dict[str, dict[float, ScoredResult]] = defaultdict(dict)
    for level, result in own:
        if ladder.position(level) > start:
            on_ladder[result["experiment"]][level] = result
    levels = sorted({level for found in on_ladder.values() for level in found}, key=ladder.position)
    on_text = [r for r in results if r["source"] == CLEAN_SOURCE] if ladder.clean is not None else []
    return _Rungs(ladder, levels, dict(on_ladder), {r["experiment"]: r for r in on_text})


def _level(result: ScoredResult, dial: str) -> float:
    level = result["source_dials"][dial]
    assert isinstance(level, int | float), f"{dial}={level!r}: the dial of a ladder is a number"
    return float(level)


def _ladder_tolerance(
    rungs: _Rungs, variant: str, clean: str, scores: dict[str, ById], reason: str | None
) -> LadderTolerance:
    """Return the tolerances on one ladder; a reason against the threshold leaves the levels out."""
    # Transforms that answered the same examples are resampled together.
    together: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for experiment in rungs.complete():
        at_levels, on_text = ([r["name"] for r in of(experiment)] for of in (rungs.at_levels, rungs.on_text))
        together[common([*at_levels, clean, *on_text], scores)].append(experiment)
    rows: dict[str, ToleranceRow] = {}
    for ids, experiments in together.items():
        if ids:
            rows |= _tolerance_rows(rungs, experiments, ids, clean, scores, reason is None)
    ladder = rungs.ladder
    return {
        "ladder": ladder.name,
        "source": ladder.source,
        "variant": variant,
        "dial": ladder.dial,
        "unit": ladder.unit,
        "axis": ladder.axis,
        "levels": rungs.levels,
        "threshold": float(scores[clean].scores.mean() / 2),
        "reason": reason,
        "transforms": [rows[experiment] for experiment in rungs.complete() if experiment in rows],
        # A level is missing, or no example was answered at every level.
        "left_out": [experiment for experiment in rungs.on_ladder if experiment not in rows],
    }


def _tolerance_rows(
    rungs: _Rungs, experiments: list[str], ids: tuple[str, ...], clean: str, scores: dict[str, ById], usable: bool
) -> dict[str, ToleranceRow]:
    """Return the tolerances of transforms that answered the same examples, by experiment.

    Args:
        rungs: Results on the ladder.
        experiments: The transforms.
        ids: Ids of the N examples.
        clean: Name of the clean control.
        scores: Example ids and scores of each result and control, by its name.
        usable: Whether half of the clean score is a threshold.
    """
    stack: list[Scores] = [scores_on(ids, scores[clean])]
    parts: dict[str, slice] = {}
    for experiment in experiments:
        members = [*rungs.on_text(experiment), *rungs.at_levels(experiment)]
        parts[experiment] = slice(len(stack), len(stack) + len(members))
        stack += [scores_on(ids, scores[member["name"]]) for member in members]
    table = np.stack(stack)  # (1 + members, N)
    passages = passages_of(ids, scores[clean])
    means = passages.resampled_means(table, SEED)  # (1 + members, R)
    ladder = rungs.ladder
    measured = [ladder.position(level) for level in rungs.levels]
    rows: dict[str, ToleranceRow] = {}
    for experiment, part in parts.items():
        first, anchored = rungs.at_levels(experiment)[0], bool(rungs.on_text(experiment))
        start = [ladder.position(ladder.clean)] if anchored and ladder.clean is not None else []
        positions = np.array(start + measured)
        crossed = crossing(positions, table[part].mean(axis=1)[:, None], table[:1].mean(axis=1) / 2)[0]
        resampled = crossing(positions, means[part], means[0] / 2)
        ends = np.quantile(resampled, [0.025, 0.975], method="inverted_cdf")  # some may be infinite
        end = _end(ladder, float(crossed))
        rows[experiment] = {
            "experiment": experiment,
            "family": first["family"],
            "supervised": is_supervised(first),
            "num_samples": len(ids),
            "scores": [float(score) for score in table[part].mean(axis=1)[len(start) :]],
            "anchored": anchored,
            "status": end["status"] if usable else "unknown",
            "level": end["level"] if usable else None,
            "interval": [_end(ladder, float(one)) for one in ends] if usable and passages.count >= FEW else None,
        }
    return rows


def crossing(positions: Scores, means: Scores, threshold: Scores) -> Scores:
    """Return the position where the score first falls to the threshold, by linear interpolation between two levels.

    Args:
        positions: Positions of the L levels on their axis, from mild to severe, (L,).
        means: Mean score at each level in R resamples, (L, R).
        threshold: Threshold in each resample, (R,).

    Returns:
        Positions, (R,): infinity if the score stays above the threshold, minus infinity if it starts at or below it.
    """
    below = means <= threshold  # (L, R)
    first = below.argmax(axis=0)  # (R,)
    column = np.arange(means.shape[1])
    before = np.maximum(first - 1, 0)
    upper, lower = means[before, column], means[first, column]
    drop = np.where(upper > lower, upper - lower, 1.0)
    found = positions[before] + (positions[first] - positions[before]) * (upper - threshold) / drop
    found = np.where(first == 0, -np.inf, found)
    return np.where(below.any(axis=0), found, np.inf)


def _end(ladder: Ladder, position: float) -> LadderEnd:
    if math.isinf(position):
        return {"status": "beyond" if position > 0 else "before", "level": None}
    return {"status": "crosses", "level": ladder.level(position)}


def tolerance_table(atlas: Atlas) -> Table:
    """Return the names of the columns and the rows of a table of tolerances.

    An end of an interval that is beyond the measured levels appears as its status.
    """
    columns = ["ladder", "variant", "transform", "family", "status", "level", "unit", "from", "to", "num_samples"]
    rows = [
        [ladder["ladder"], ladder["variant"], row["experiment"], row["family"], row["status"], row["level"],
         ladder["unit"], *([_written(end) for end in row["interval"]] if row["interval"] else [None, None]),
         row["num_samples"]]
        for ladder in atlas["tolerance"]
        for row in ladder["transforms"]
    ]  # fmt: skip
    return columns, rows


def _written(end: LadderEnd) -> str:
    return end["status"] if end["level"] is None else f"{end['level']:.3g}"
