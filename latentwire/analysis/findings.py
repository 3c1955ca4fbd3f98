"""Findings of a sweep: their shape, and the detector that needs all results (decoding too fast to be true)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Finding = dict[str, str]


TOO_FAST = 0.02  # of the time a position needs; machines and loads differ by less than fifty times within a sweep


ENOUGH_TO_COMPARE = 4  # configurations that were really decoded


ENOUGH_SHOTS = 200  # positions of the shots that tell how long one takes to read


def finding(kind: str, level: str, message: str) -> Finding:
    """Return a finding."""
    return {"kind": kind, "level": level, "message": message}


def too_fast(results: Sequence[dict[str, Any]]) -> dict[str, Finding]:
    """Find results whose decoding took far less time than the model needs: a failure that was swallowed.

    Measured is the time of what was really decoded (identical inputs are decoded once), per position. It is set
    against two others, so that a fault of most or of all configurations is seen too, and no figure of a machine is
    needed: the slowest configuration of the sweep on the same model and machine that decoded at least half as much
    (a short batch takes longer for a position), and the time in which the model read the shots, in one pass.

    Returns:
        A finding for each such result, by its name.
    """
    alike: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for result in results:
        timing = result.get("timing", {})
        if timing.get("positions"):
            key = tuple(result.get(field) for field in ("model", "data", "dtype", "device", "processes"))
            alike.setdefault(key, {})[result["name"]] = timing
    found = {}
    for timings in alike.values():
        for name, timing in timings.items():
            rate = timing["decode_sec"] / timing["positions"]
            needed = [_shots_rate(timing)]
            if len(timings) >= ENOUGH_TO_COMPARE:
                many = [other for other in timings.values() if 2 * other["positions"] >= timing["positions"]]
                needed += [other["decode_sec"] / other["positions"] for other in many]
            if rate < TOO_FAST * max(needed):
                text = f"decoding took {rate * 1e6:.2g} us a position where others or the shots took "
                text += f"{max(needed) * 1e6:.2g}: the model can hardly have been asked"
                found[name] = finding("too_fast", "warning", text)
    return found


def _shots_rate(timing: dict[str, Any]) -> float:
    """Return the seconds for a position of the shots; 0, which finds nothing, where they are too few to tell."""
    positions = timing.get("shots_positions", 0)
    return float(timing["shots_sec"] / positions) if positions >= ENOUGH_SHOTS else 0.0


def joined(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the findings of all results, equal ones as one with the names of the results and their count."""
    names: dict[tuple[str, str, str], list[str]] = {}
    for result in results:
        for one in result.get("warnings", []):
            names.setdefault((one["kind"], one["level"], one["message"]), []).append(result["name"])
    return [
        {"kind": kind, "level": level, "message": message, "names": having, "count": len(having)}
        for (kind, level, message), having in names.items()
    ]
