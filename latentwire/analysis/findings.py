"""Findings of a sweep, and the detector that reads all results. Main entries: `joined_findings()`, `too_fast()`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from latentwire.analysis.records import JoinedFinding
from latentwire.records import Finding as Finding
from latentwire.records import ScoredResult, Timing

TOO_FAST = 0.02  # share of the usual time of a position; background load changes it by less than 50 times
ENOUGH_TO_COMPARE = 4  # decoded configurations that a comparison needs
ENOUGH_SHOTS = 200  # positions of shots from which their time gives an estimate


def finding(kind: str, level: str, message: str) -> Finding:
    """Return a finding.

    Args:
        kind: Name of the detector's rule.
        level: "note" or "warning".
        message: What was found.
    """
    return {"kind": kind, "level": level, "message": message}


def too_fast(results: Sequence[ScoredResult]) -> dict[str, Finding]:
    """Find results whose decoding took far less time than the model needs, which points to a swallowed failure.

    The measure is the time of a decoded position; identical inputs are decoded once. Both times that it is compared
    with come from the same sweep. So the detector needs no figure of the machine, and also finds a fault of all
    configurations:

    - The time in which the model encoded the shots in one pass.
    - The median of the configurations on the same model and machine, because a pause of the machine slows single ones.
      They must have decoded at least half as many positions: a short batch takes longer for each position. Without
      enough shots it is the slowest one, which also shows a fault of most configurations.

    Returns:
        The findings by name of the result.
    """
    alike: dict[tuple[str | int, ...], dict[str, Timing]] = {}
    for result in results:
        if result["timing"]["positions"]:
            key = (result["model"], result["data"], result["dtype"], result["device"], result["processes"])
            alike.setdefault(key, {})[result["name"]] = result["timing"]
    found = {}
    for timings in alike.values():
        for name, timing in timings.items():
            rate = timing["decode_sec"] / timing["positions"]
            needed = [_shots_rate(timing)]
            if len(timings) >= ENOUGH_TO_COMPARE:
                many = [other for other in timings.values() if 2 * other["positions"] >= timing["positions"]]
                rates = [other["decode_sec"] / other["positions"] for other in many]
                needed.append(median(rates) if needed[0] else max(rates))
            if rate < TOO_FAST * max(needed):
                message = f"decoding took {rate * 1e6:.2g} us a position, but {max(needed) * 1e6:.2g} us elsewhere: "
                message += "the model probably did not run"
                found[name] = finding("too_fast", "warning", message)
    return found


def _shots_rate(timing: Timing) -> float:
    """Return the seconds for each position of the shots, or 0 if the shots are too short for an estimate."""
    positions = timing["shots_positions"]
    return timing["shots_sec"] / positions if positions >= ENOUGH_SHOTS else 0.0


def joined_findings(results: Iterable[ScoredResult]) -> list[JoinedFinding]:
    """Return the findings of all results; equal ones become one, with the names and number of its results."""
    names: dict[tuple[str, str, str], list[str]] = {}
    for result in results:
        for one in result["warnings"]:
            names.setdefault((one["kind"], one["level"], one["message"]), []).append(result["name"])
    return [
        {"kind": kind, "level": level, "message": message, "names": having, "count": len(having)}
        for (kind, level, message), having in names.items()
    ]
