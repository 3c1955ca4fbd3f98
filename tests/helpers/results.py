"""Made-up results for the analysis, and results of real sweeps without their timings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from latentwire.analysis.controls import ById
from latentwire.records import FORMAT

COUNT = 200
IDS = [f"q{i}" for i in range(COUNT)]


def result_of(family: str, name: str, values: np.ndarray, group: str, **more: object) -> dict[str, Any]:
    """Return a result as the analysis reads it: each example has the same F1 and EM, its value."""
    f1 = float(values.mean())
    scored = {"mean": f1, "interval": (max(0, f1 - 0.1), min(1, f1 + 0.1))}
    return {
        "format": FORMAT, "name": name, "experiment": name, "family": family, "dials": {}, "source": group,
        "source_dials": {}, "group": group, "variant": "", "control": None, "config_hash": name, "model": "tiny",
        "model_id": "tiny", "data": "made_up", "status": "ok", "f1": f1, "f1_interval": scored["interval"], "em": f1,
        "em_interval": scored["interval"], "empty_rate": 0.0, "empty_rate_interval": (0.0, 0.1),
        "scores": {"f1": scored, "em": scored}, "num_samples": len(values), "num_examples": None, "too_long": 0,
        "left_out": {}, "cut_off": 0, "relative_change": 0.5, "identity": False, "warnings": [], "fit": None,
        "latents": None, "time_sec": 60.0, "job_sec": 61.0,
        "timing": {"decoded": 0, "reused": 0, "decode_sec": 0.0, "positions": 0, "shots_sec": 0.0,
                   "shots_positions": 0},
        "seed": 3, "dtype": "float32", "device": "cpu", "processes": 1, "git_commit": None, **more,
    }  # fmt: skip


def scored(values: np.ndarray, ids: Sequence[str] = IDS, passages: Sequence[str] | None = None) -> ById:
    """Return the scores of the first examples; each is about a passage of its own unless `passages` are given."""
    own = list(ids[: len(values)])
    return ById(own, values, own if passages is None else list(passages[: len(values)]))


def summary_with(analysis: dict[str, Any], results: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Return a summary with an analysis; without `results`, only its counts are as in a real one."""
    count = sum(len(group["ranking"]) for group in analysis["groups"])
    return {
        "format": FORMAT, "sweep": "s", "command": "python run.py", "primary_metric": analysis["metric"],
        "total_experiments": count, "successful": count, "failed": 0, "results": results or [], "controls": [],
        "sorted_by_f1": [], "sorted_by_score": [], "budget": None, "analysis": analysis, "part": None, "samples": 200,
        "seed": 3, "shots_seed": 3,
    }  # fmt: skip


def right(share: float, count: int = COUNT) -> np.ndarray:
    """Return scores of 0 and 1, evenly mixed, so that each prefix has nearly the same mean."""
    places = np.arange(count)
    found: np.ndarray = (np.floor((places + 1) * share + 1e-9) - np.floor(places * share + 1e-9)).astype(float)
    return found


TIMINGS = ("time_sec", "job_sec", "timing")


def without_timings(summary: Any) -> Any:
    """Return the summary of a sweep without its command, its times, and the warnings that depend on times."""
    if isinstance(summary, dict):
        kept = {name: value for name, value in summary.items() if name not in TIMINGS}
        return {name: None if name == "command" else without_timings(value) for name, value in kept.items()}
    if isinstance(summary, list):
        timed = [entry for entry in summary if not (isinstance(entry, dict) and entry.get("kind") == "too_fast")]
        return [without_timings(entry) for entry in timed]
    return summary
