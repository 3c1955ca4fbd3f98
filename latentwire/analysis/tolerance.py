"""How much of each distortion a transform tolerates. Main entry: `tolerances()`."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentwire.analysis.controls import SEED, ById, common, is_supervised, scores_on
from latentwire.stats.formatting import format_score
from latentwire.stats.intervals import FEW, Scores, resampled_means

Result = dict[str, Any]


@dataclass(frozen=True)
class Ladder:
    """Levels of one source, from mild to severe.

    Args:
        source: Name of the source.
        dial: Dial that sets the level.
        unit: Unit of the level.
        axis: "linear" or "log"; F1 between two levels is interpolated linearly on this axis.
        rising: Whether a higher level distorts more.
        clean: Level that distorts nothing; None if it is infinite. It does not count among the measured levels.
        label: Name of the ladder if the source has two.
    """

    source: str
    dial: str
    unit: str
    axis: str
    rising: bool
    clean: float | None
    label: str = ""

    @property
    def name(self) -> str:
        """Name of the ladder."""
        return self.label or self.source

    def position(self, level: float) -> float:
        """Return the position of a level on the axis; a higher position distorts more."""
        value = math.log(level) if self.axis == "log" else level
        return value if self.rising else -value

    def level(self, position: float) -> float:
        """Return the level at a position on the axis."""
        value = position if self.rising else -position
        return math.exp(value) if self.axis == "log" else value


LADDERS = (
    Ladder("noisy", "snr_db", "dB", "linear", rising=False, clean=None),  # decibels are logarithmic
    Ladder("scaled", "factor", "x", "log", rising=True, clean=1.0, label="scaled up"),
    Ladder("scaled", "factor", "x", "log", rising=False, clean=1.0, label="scaled down"),
    Ladder("shifted", "offset", "norms", "linear", rising=True, clean=0.0),
    Ladder("mixed", "rate", "share", "linear", rising=True, clean=0.0),
    Ladder("token_scale", "spread", "log sd", "linear", rising=True, clean=0.0),
    Ladder("anisotropic", "spread", "log sd", "linear", rising=True, clean=0.0),
    Ladder("low_rank", "rank", "components", "log", rising=False, clean=None),
)


def tolerances(results: list[Result], groups: list[dict[str, Any]], scores: dict[str, ById]) -> list[dict[str, Any]]:
    """Return for each ladder and transform the level at which F1 falls to half of the clean control's F1.

    Args:
        results: Successful results.
        groups: Analysis of each source.
        scores: Example ids and F1 of each result and control, by its name.

    Returns:
        A dict for each ladder with at least two levels among the results.
    """
    controls_of = {group["group"]: group["controls"] for group in groups if group["controls"]}
    reason_of = {group["group"]: group["reason"] for group in groups if group["reason"]}
    found = []
    for variant in dict.fromkeys(result.get("variant", "") for result in results):
        own = [result for result in results if result.get("variant", "") == variant]
        for ladder in LADDERS:
            rungs = _rungs(ladder, own)
            controls = next((controls_of[r["group"]] for r in own if r["group"] in controls_of), None)
            if len(rungs) > 1 and controls is not None:
                on_it = [r["group"] for r in own if r["source"] == ladder.source]
                reason = next((reason_of[group] for group in on_it if group in reason_of), None)
                reason = reason or _half_is_empty(controls, scores)
                clean = controls["clean"]["name"]
                found.append(_ladder_tolerance(ladder, variant, rungs, own, clean, scores, reason))
    return found


def _half_is_empty(controls: dict[str, Any], scores: dict[str, ById]) -> str | None:
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
        high = float(np.quantile(resampled_means(above[None], SEED)[0], 0.975))
        if high >= 0:
            return (
                f"an empty context scores F1 {format_score(lower['f1'])}, not clearly below half of the clean "
                f"score ({format_score(controls['clean']['f1'] / 2)})"
            )
    return None


def _rungs(ladder: Ladder, results: list[Result]) -> list[float]:
    """Return the levels of a ladder among the results, mild to severe."""
    levels = {float(result["source_dials"][ladder.dial]) for result in results if result["source"] == ladder.source}
    if ladder.clean is not None:
        levels = {level for level in levels if ladder.position(level) > ladder.position(ladder.clean)}
    return sorted(levels, key=ladder.position)


def _ladder_tolerance(
    ladder: Ladder,
    variant: str,
    rungs: list[float],
    results: list[Result],
    clean: str,
    scores: dict[str, ById],
    reason: str | None,
) -> dict[str, Any]:
    """Return the tolerances on one ladder; a reason against the threshold leaves the levels out."""
    on_ladder: dict[str, dict[float, Result]] = defaultdict(dict)
    undistorted: dict[str, Result] = {}
    for result in results:
        if result["source"] == ladder.source:
            level = float(result["source_dials"][ladder.dial])
            if level in rungs:
                on_ladder[result["experiment"]][level] = result
        elif result["source"] == "text":
            undistorted[result["experiment"]] = result
    start = [] if ladder.clean is None else [ladder.position(ladder.clean)]
    complete = {name: levels for name, levels in on_ladder.items() if len(levels) == len(rungs)}

    # Transforms that answered the same examples are resampled together.
    together: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for experiment, levels in complete.items():
        names = [levels[rung]["name"] for rung in rungs] + [clean]
        if start and experiment in undistorted:
            names.append(undistorted[experiment]["name"])
        together[common(names, scores)].append(experiment)
    rows: dict[str, dict[str, Any]] = {}
    for ids, experiments in together.items():
        if not ids:
            continue
        stack: list[Scores] = [scores_on(ids, scores[clean])]
        parts = []
        for experiment in experiments:
            anchored = [undistorted[experiment]] if start and experiment in undistorted else []
            members = anchored + [complete[experiment][rung] for rung in rungs]
            positions = np.array(start * len(anchored) + [ladder.position(rung) for rung in rungs])
            parts.append((experiment, positions, slice(len(stack), len(stack) + len(members)), len(anchored)))
            stack += [scores_on(ids, scores[member["name"]]) for member in members]
        table = np.stack(stack)
        means = resampled_means(table, SEED)
        for experiment, positions, part, anchored_count in parts:
            crossed = crossing(positions, table[part].mean(axis=1)[:, None], table[:1].mean(axis=1) / 2)[0]
            resampled = crossing(positions, means[part], means[0] / 2)
            ends = np.quantile(resampled, [0.025, 0.975], method="inverted_cdf")  # some may be infinite
            crossed_at = {"status": "unknown", "level": None} if reason else _end(ladder, float(crossed))
            interval = [_end(ladder, float(end)) for end in ends] if reason is None and len(ids) >= FEW else None
            first = next(iter(complete[experiment].values()))
            rows[experiment] = {
                "experiment": experiment,
                "family": first["family"],
                "supervised": is_supervised(first),
                "num_samples": len(ids),
                "f1": [float(f1) for f1 in table[part].mean(axis=1)[anchored_count:]],
                "anchored": bool(anchored_count),  # whether the transform's F1 on text is the first position
                **crossed_at,
                "interval": interval,
            }
    return {
        "ladder": ladder.name,
        "source": ladder.source,
        "variant": variant,
        "dial": ladder.dial,
        "unit": ladder.unit,
        "axis": ladder.axis,
        "levels": rungs,
        "threshold": float(scores[clean][1].mean() / 2),
        "reason": reason,
        "transforms": [rows[experiment] for experiment in complete if experiment in rows],
        # A level is missing, or no example was answered at every level.
        "left_out": [experiment for experiment in on_ladder if experiment not in rows],
    }


def crossing(positions: Scores, means: Scores, threshold: Scores) -> Scores:
    """Return the position where F1 first falls to the threshold, by linear interpolation between two levels.

    Args:
        positions: Positions of the L levels on their axis, from mild to severe, (L,).
        means: Mean F1 at each level in R resamples, (L, R).
        threshold: Threshold in each resample, (R,).

    Returns:
        Positions, (R,): infinity if F1 stays above the threshold, minus infinity if it starts at or below it.
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


def _end(ladder: Ladder, position: float) -> dict[str, Any]:
    if math.isinf(position):
        return {"status": "beyond" if position > 0 else "before", "level": None}
    return {"status": "crosses", "level": ladder.level(position)}


def tolerance_table(atlas: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
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


def _written(end: dict[str, Any]) -> str:
    return end["status"] if end["level"] is None else f"{end['level']:.3g}"
