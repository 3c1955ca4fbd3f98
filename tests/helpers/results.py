"""Made-up results for the analysis, and results of real sweeps without their timings."""

from __future__ import annotations

from typing import Any

import numpy as np

COUNT = 200
IDS = [f"q{i}" for i in range(COUNT)]


def result_of(family: str, name: str, values: np.ndarray, group: str, **more: object) -> dict:
    """Return a result as the analysis reads it."""
    f1 = float(values.mean())
    return {
        "name": name, "experiment": name, "family": family, "dials": {}, "source": group, "group": group,
        "f1": f1, "f1_interval": (max(0, f1 - 0.1), min(1, f1 + 0.1)), "em": f1, "empty_rate": 0.0,
        "identity": False, "num_samples": len(values), "source_dials": {}, **more,
    }  # fmt: skip


def right(share: float, count: int = COUNT) -> np.ndarray:
    """Return scores of 0 and 1, evenly mixed, so that each prefix has nearly the same mean."""
    places = np.arange(count)
    return (np.floor((places + 1) * share + 1e-9) - np.floor(places * share + 1e-9)).astype(float)


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
