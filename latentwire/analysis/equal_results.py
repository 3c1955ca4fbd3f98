"""Detectors of results that are equal but should differ. Main entries: `dial_without_effect()`, `same_answers()`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from latentwire.analysis.controls import BASELINE
from latentwire.analysis.findings import finding
from latentwire.analysis.finished import NEAR, Answered, FinishedSweep
from latentwire.analysis.odd_answers import odd_halves
from latentwire.records import Finding

EQUAL = 1e-6  # relative difference of outputs that counts as none: rounding of float32 sums
DIFFERENT = 0.05  # relative difference of outputs that are clearly different
CHANGED = 0.1  # relative change from which a transform changes its input a lot
SAME = 0.98  # share of equal answers; the highest one of different inputs was .91 (SmolLM2 on short_qa, n = 200)
READ = 0.8  # from this share of equal answers on, a configuration answers as its control does
FEW = 8  # fewer examples may have equal answers by chance
FAR = 1.0  # distance of noise at 0 dB; at twice the length, also distance 1, .58 of the answers were as on clean text


def dial_without_effect(sweep: FinishedSweep) -> dict[str, list[Finding]]:
    """Return findings for configurations that differ in one dial and have equal outputs.

    If no two values of the dial give different outputs it is a warning. If only some values are equal, it is a note:
    a dial may saturate.
    """
    found: dict[str, list[Finding]] = {}
    for members in sweep.groups.values():
        changing = [one for one in members if not one.result["identity"] and one.result["family"] != BASELINE]
        for dial, varied in _varied(changing):
            pairs = list(itertools.combinations(varied, 2))
            equal = [pair for pair in pairs if _equal_outputs(*pair)]
            values = ", ".join(str(one.result["dials"][dial]) for one in varied if any(one in pair for pair in equal))
            level = "warning" if len(equal) == len(pairs) else "note"
            message = f"the dial {dial} of {varied[0].result['family']} has no effect: equal outputs for {values}"
            for one in dict.fromkeys(itertools.chain.from_iterable(equal)):
                found.setdefault(one.name, []).append(finding("no_effect", level, message))
    return found


def _varied(members: Sequence[Answered]) -> Iterator[tuple[str, list[Answered]]]:
    """Yield each dial with the configurations of a family that differ in this dial alone."""
    for dial in dict.fromkeys(dial for one in members for dial in one.result["dials"]):
        alike: dict[str, list[Answered]] = {}
        for one in members:
            if dial in one.result["dials"]:
                others = {name: value for name, value in one.result["dials"].items() if name != dial}
                alike.setdefault(str((one.result["family"], sorted(others.items()))), []).append(one)
        yield from ((dial, same) for same in alike.values() if len(same) > 1)


def _equal_outputs(one: Answered, other: Answered) -> bool:
    """Return whether two results have equal answers, and repaired embeddings that are equal as far as stored."""
    if _sketch_difference(one, other) > EQUAL:
        return False
    ids = one.common(other)
    if not ids or one.predictions(ids) != other.predictions(ids):
        return False
    return bool((np.abs(one.changes_of(ids) - other.changes_of(ids)) <= EQUAL).all())  # NaN, a change not stored: no


def _sketch_difference(one: Answered, other: Answered) -> float:
    """Return the relative difference of two sketches, or 0 if one of them is not stored."""
    a, b = one.result.get("sketch"), other.result.get("sketch")
    if not a or not b:
        return 0.0
    x, y = np.array(a), np.array(b)
    return float(np.linalg.norm(x - y) / max(float(np.linalg.norm(x)), float(np.linalg.norm(y)), 1e-30))


def source_dial_without_effect(sweep: FinishedSweep) -> dict[str, list[Finding]]:
    """Return a warning for baselines of one source with other dials but equal inputs.

    Where sketches are not stored, the other configurations show it too: each must change both sources equally.
    """
    found: dict[str, list[Finding]] = {}
    for first, second in itertools.combinations(sweep.groups, 2):
        one, other = sweep.baseline(first), sweep.baseline(second)
        if one is None or other is None or one.result["source"] != other.result["source"]:
            continue
        if one.result["variant"] != other.result["variant"] or not _equal_outputs(one, other):
            continue
        sketched = bool(one.result.get("sketch")) and bool(other.result.get("sketch"))
        theirs = {member.result["experiment"]: member for member in sweep.groups[second]}
        shared = [(own, theirs[own.result["experiment"]]) for own in sweep.groups[first]
                  if own.result["experiment"] in theirs and own.result["relative_change"] > 0]  # fmt: skip
        if sketched or (shared and all(_equal_outputs(a, b) for a, b in shared)):
            message = f"{one.result['group']} and {other.result['group']} give equal inputs: the dial has no effect"
            for name in (one.name, other.name):
                found.setdefault(name, []).append(finding("no_effect", "warning", message))
    return found


def same_answers(sweep: FinishedSweep) -> dict[str, list[Finding]]:
    """Return warnings for results that answer alike although the model got clearly different inputs.

    Equal answers are natural where the model reads both inputs and answers as on clean text, or reads neither and
    answers as without a passage. If only one of the inputs is near real embeddings and nothing of them is left in the
    other, the other one is suspect.
    """
    found: dict[str, list[Finding]] = {}
    for group, members in sweep.groups.items():
        baseline = sweep.baseline(group)
        every = [*members, baseline] if baseline is not None and baseline not in members else members
        for one, other in itertools.combinations(every, 2):
            for suspect in _suspiciously_same(one, other, sweep):
                partner = other if suspect is one else one
                if suspect.result["family"] != BASELINE and suspect.name not in found:
                    message = (
                        f"answers {one.agreement(other):.0%} of the examples as {partner.result['experiment']} does, "
                        "although the inputs differ: the output does not reach the model, or answers are mixed up"
                    )
                    found[suspect.name] = [finding("same_answers", "warning", message)]
    return found


def _suspiciously_same(one: Answered, other: Answered, sweep: FinishedSweep) -> list[Answered]:
    """Return which of two results of a source are suspect because they answer alike although their inputs differ."""
    if one.result["family"] == other.result["family"] or len(one.rows) < FEW:
        return []
    if not _different_inputs(one, other) or one.agreement(other) < SAME or not one.varies():
        return []
    if one.distance is not None and other.distance is not None and min(one.distance, other.distance) < NEAR:
        far = one if one.distance > other.distance else other
        return [far] if max(one.distance, other.distance) >= FAR else []
    clean, empty = sweep.clean(one), sweep.control("empty", one)
    if clean is None or odd_halves(clean):
        return []
    natural = any(control is not None and one.agreement(control) >= READ for control in (clean, empty))
    return [] if natural else [one, other]


def _different_inputs(one: Answered, other: Answered) -> bool:
    """Return whether the model got clearly different inputs in two results."""
    changes = one.result["relative_change"], other.result["relative_change"]
    if any(r.result["family"] != BASELINE and r.result["relative_change"] < CHANGED for r in (one, other)):
        return False
    if one.result.get("sketch") and other.result.get("sketch"):
        return _sketch_difference(one, other) > DIFFERENT
    return abs(changes[0] - changes[1]) > DIFFERENT * max(changes)
