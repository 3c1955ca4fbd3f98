"""Report on a reward model: accuracy with a length-only baseline, log-loss and calibration, as pure functions.

Main entry: `evaluate_by_part()`. Pairs of one prompt are not independent, so prompts are the units of every interval.
Accuracies have Wilson's interval, their paired difference the interval of random flips of signs, and the log-loss
Student's with half of the skewness corrected. A tie counts half, and the number of ties is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kat.records import Calibration, CalibrationBin, PairsReport, RewardReport
from latentwire.stats.clusters import SampledClusters
from latentwire.stats.comparison import paired_differences
from latentwire.stats.intervals import Scores, mean_interval
from latentwire.stats.seeds import interval_over_clusters

BINS = 10  # bins of the confidence, from .5 to 1
CALIBRATED = 1000  # simulated models that are perfectly calibrated


@dataclass(frozen=True)
class ScoredPair:
    """A pair with its reward margin."""

    prompt_id: str
    source: str
    margin: float  # reward of the chosen completion minus the reward of the rejected one
    chosen_length: int  # characters
    rejected_length: int
    decile: int | None = None  # decile of the prompt's density, 1 (rarest) to 10; None if unknown


def longer_wins(lengths: Sequence[tuple[int, int]]) -> bool:
    """Return whether the longer answer is chosen at least as often as the shorter, from (chosen, rejected) lengths."""
    return sum(chosen > rejected for chosen, rejected in lengths) >= sum(c < r for c, r in lengths)


def deciles(density: Sequence[float]) -> list[int]:
    """Return the decile of each density, from 1 (lowest, rarest) to 10 (highest)."""
    order = np.argsort(np.asarray(density), kind="stable")
    found = np.empty(len(order), dtype=np.int64)
    found[order] = np.arange(len(order)) * 10 // len(order) + 1
    return [int(value) for value in found]


def points(values: Sequence[float] | Scores) -> Scores:
    """Return 1 where a value is above 0, 0 where it is below, and 0.5 for a tie: (N,) -> (N,)."""
    return (np.sign(np.asarray(values, dtype=np.float64)) + 1) / 2


def log_loss(margins: Scores) -> Scores:
    """Return -log sigmoid(margin) in nats, (N,) -> (N,); a constant reward gives log 2."""
    return np.logaddexp(0.0, -margins)


def calibration(margins: Scores, seed: int) -> Calibration:
    """Return the expected calibration error (Guo et al. 2017, arXiv 1706.04599) with its bins.

    The confidence of a pair is sigmoid(|margin|), from .5 to 1, in BINS bins of equal width. The error is the mean of
    |accuracy - confidence| over the bins, weighted by their numbers of pairs. It is above 0 by chance also for a
    perfectly calibrated model. `error_if_calibrated` is its mean over CALIBRATED simulations of such a model, whose
    pairs have the same confidences and are independently right.

    Args:
        margins: Reward margins, (N,).
        seed: Seed of the simulations.
    """
    confidence: NDArray[np.float64] = 1 / (1 + np.exp(-np.abs(margins)))
    right = points(margins)
    number = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    bins: list[CalibrationBin] = []
    error, by_chance = 0.0, np.zeros(CALIBRATED)
    generator = np.random.default_rng(seed)
    for index in range(BINS):
        inside = number == index
        entry: CalibrationBin = {
            "from": 0.5 + index / (2 * BINS),
            "to": 0.5 + (index + 1) / (2 * BINS),
            "pairs": int(inside.sum()),
            "confidence": None,
            "accuracy": None,
        }
        if inside.any():
            expected, found = float(confidence[inside].mean()), float(right[inside].mean())
            entry["confidence"], entry["accuracy"] = expected, found
            error += inside.mean() * abs(found - expected)
            own = confidence[inside]
            drawn = np.where(right[inside] == 0.5, 0.5, generator.random((CALIBRATED, len(own))) < own)
            by_chance += inside.mean() * np.abs(drawn.mean(axis=1) - expected)
        bins.append(entry)
    return {"error": float(error), "error_if_calibrated": float(by_chance.mean()), "bins": bins}


def evaluate_pairs(pairs: Sequence[ScoredPair], longer: bool | None, seed: int) -> PairsReport:
    """Return accuracy, log-loss and calibration of pairs, and the accuracy of a length-only rule on the same pairs.

    Args:
        pairs: At least one pair.
        longer: Whether the rule prefers the longer answer, by `longer_wins` on the training pairs; None for no rule.
        seed: Seed of the flips of signs and of the simulated models.
    """
    margins = np.array([pair.margin for pair in pairs])
    right, losses = points(margins), log_loss(margins)
    prompts = SampledClusters([pair.prompt_id for pair in pairs])
    report: PairsReport = {
        "pairs": len(pairs),
        "prompts": prompts.count,
        "ties": int((margins == 0).sum()),
        "accuracy": float(right.mean()),
        "accuracy_interval": list(mean_interval(right, prompts)),
        "log_loss": float(losses.mean()),
        "log_loss_interval": list(interval_over_clusters(losses, prompts, 0.0)),
        "calibration": calibration(margins, seed),
    }
    if longer is not None:
        lengths = np.array([pair.chosen_length - pair.rejected_length for pair in pairs], dtype=np.float64)
        by_length = points(lengths if longer else -lengths)
        (above,) = paired_differences(right[None], by_length, seed, prompts, 1.0)
        report["length_only"] = {
            "rule": "longer" if longer else "shorter",
            "ties": int((lengths == 0).sum()),
            "accuracy": float(by_length.mean()),
            "accuracy_interval": list(mean_interval(by_length, prompts)),
            "difference": above.difference,
            "difference_interval": list(above.interval),
        }
    return report


def evaluate_by_part(pairs: Sequence[ScoredPair], longer: bool | None, seed: int) -> RewardReport:
    """Return `evaluate_pairs` for all pairs, and in by_source and by_density_decile for each part of them."""
    sources = sorted({pair.source for pair in pairs})
    known_deciles = sorted({pair.decile for pair in pairs if pair.decile is not None})
    return {
        **evaluate_pairs(pairs, longer, seed),
        "by_source": {name: evaluate_pairs([p for p in pairs if p.source == name], longer, seed) for name in sources},
        "by_density_decile": {
            str(n): evaluate_pairs([p for p in pairs if p.decile == n], longer, seed) for n in known_deciles
        },
    }


def render_reward_report(report: RewardReport, title: str) -> str:
    """Return a report of `evaluate_by_part` as a table with at most 100 columns; deciles are deciles of density."""
    rule = report.get("length_only")
    width = max(18, *(len(name) + 2 for name in report["by_source"]))
    head = f"{title[:width]:<{width}} {'pairs':>6} {'prompts':>7} {'ties':>5} {'accuracy':<17}"
    lines = [head + (f" {rule['rule'] + ' one':<17} difference" if rule else "")]
    lines.append(_line("all", report, width))
    lines += [_line(f"  {name}", part, width) for name, part in report["by_source"].items()]
    ends = {"1": "1 (rarest)"}
    lines += [_line(f"  decile {ends.get(n, n)}", part, width) for n, part in report["by_density_decile"].items()]
    low, high = report["log_loss_interval"]
    lines.append(f"log-loss {report['log_loss']:.3f} [{low:.3f}, {high:.3f}] (log 2 = 0.693: constant reward)")
    error, by_chance = report["calibration"]["error"], report["calibration"]["error_if_calibrated"]
    lines.append(f"expected calibration error {error:.3f} (a perfectly calibrated model: {by_chance:.3f} on average)")
    lines.append("confidence -> accuracy (pairs):")
    filled = [b for b in report["calibration"]["bins"] if b["pairs"]]
    cells = [f"{b['confidence']:.2f} -> {b['accuracy']:.2f} ({b['pairs']})" for b in filled]
    lines += ["  " + "   ".join(cells[i : i + 4]) for i in range(0, len(cells), 4)]
    return "\n".join(lines)


def _line(name: str, part: PairsReport, width: int) -> str:
    cells = f"{name:<{width}} {part['pairs']:>6} {part['prompts']:>7} {part['ties']:>5} "
    cells += _with_interval(part["accuracy"], part["accuracy_interval"])
    if rule := part.get("length_only"):
        cells += " " + _with_interval(rule["accuracy"], rule["accuracy_interval"])
        low, high = rule["difference_interval"]
        cells += f" {rule['difference']:+.3f} [{low:+.2f}, {high:+.2f}]"
    return cells.rstrip()


def _with_interval(value: float, interval: Sequence[float]) -> str:
    return f"{value:.3f} [{interval[0]:.2f}, {interval[1]:.2f}]".ljust(17)
