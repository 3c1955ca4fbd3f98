"""What the scores of one source are worth: comparisons, power, controls, the share of the clean score recovered."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentwire.harness.errors import UserError
from latentwire.stats.comparison import Comparison, corrected, paired_bootstrap, recovered_shares
from latentwire.stats.formatting import format_score
from latentwire.stats.intervals import Difference, Scores
from latentwire.stats.power import ALPHA, POWER, POWER_FORMULA, detectable_difference, samples_needed, std

Result = dict[str, Any]
ById = tuple[list[str], Scores]  # ids of the examples and their F1, both (N,)

SEED = 0  # of the bootstrap
RANDOM = "random_interpolation"  # the family of the random tokens, the negative control


def is_supervised(result: Result) -> bool:
    """Tell whether a transform was fitted to the true tokens: a positive control, which never wins."""
    return bool((result.get("fit") or {}).get("supervised"))


def label(row: dict[str, Any]) -> str:
    """Return the name of a configuration, marked where it is the supervised control."""
    return f"{row['experiment']} (control)" if row.get("supervised") else str(row["experiment"])


def common(names: list[str], scores: dict[str, ById]) -> tuple[str, ...]:
    """Return the ids of the examples that all of these answered, in the order of the first."""
    others = [set(scores[name][0]) for name in names[1:]]
    return tuple(i for i in scores[names[0]][0] if all(i in other for other in others))


def scores_on(ids: tuple[str, ...], by: ById) -> Scores:
    """Return the F1 of these examples, (N,)."""
    places = {identifier: place for place, identifier in enumerate(by[0])}
    return by[1][[places[identifier] for identifier in ids]]


@dataclass
class AnalysisSettings:
    """How results are judged; plain settings at the root of the config."""

    min_clean_f1: float  # a clean F1 below this cannot tell repairs apart
    target_difference: float  # a difference in F1 to plan for

    def check(self) -> None:
        """Raise UserError for a value out of range."""
        if not 0 <= self.min_clean_f1 < 1:
            raise UserError(f"min_clean_f1={self.min_clean_f1}: is an F1, between 0 and 1")
        if not 0 < self.target_difference <= 1:
            raise UserError(f"target_difference={self.target_difference}: is a difference in F1, above 0 and at most 1")


@dataclass(frozen=True)
class Evidence:
    """What the results of one source are judged by."""

    baseline: Result | None
    clean: Result | None  # the upper control
    empty: Result | None  # the lower control
    random: Result | None  # the other one: random tokens, which are the same whatever the source
    controlled: bool  # controls were asked beside the results, whether they succeeded or not
    scores: dict[str, ById]
    judging: AnalysisSettings

    def on(self, name: str, ids: list[str]) -> Scores | None:
        """Return the F1 of a result on these examples, or None where it did not answer all of them."""
        own, values = self.scores[name]
        if own[: len(ids)] == ids:
            return values[: len(ids)]
        places = {identifier: place for place, identifier in enumerate(own)}
        return values[[places[i] for i in ids]] if all(i in places for i in ids) else None

    def families(self, names: list[str], *with_: str) -> list[tuple[list[str], list[Scores]]]:
        """Return results that answered the same examples, with the scores of others on these."""
        together: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for name in names:
            together[tuple(self.scores[name][0])].append(name)
        found = []
        for ids, members in together.items():
            others = [self.on(name, list(ids)) for name in with_]
            if all(other is not None for other in others):
                found.append((members, [other for other in others if other is not None]))
        return found

    def stacked(self, names: list[str]) -> Scores:
        """Return the scores of results that answered the same examples, (S, N)."""
        return np.stack([self.scores[name][1] for name in names])


def compare_with_baseline(names: list[str], evidence: Evidence) -> dict[str, Comparison]:
    """Compare with the baseline those whose examples it answered too, as one family of comparisons.

    In a budgeted sweep results have different numbers of examples; each is compared on its own.
    """
    if evidence.baseline is None:
        return {}
    found: dict[str, Difference] = {}
    for members, (reference,) in evidence.families(names, evidence.baseline["name"]):
        found |= zip(members, paired_bootstrap(evidence.stacked(members), reference, SEED), strict=True)
    return dict(zip(found, corrected(list(found.values())), strict=True))


def spreads(names: list[str], evidence: Evidence) -> dict[str, float]:
    """Return the standard deviation of each result's differences from the baseline."""
    if evidence.baseline is None:
        return {}
    return {
        name: std(evidence.scores[name][1] - reference)
        for members, (reference,) in evidence.families(names, evidence.baseline["name"])
        for name in members
    }


def detectable(sd: float | None, count: int, comparisons: int) -> dict[str, float | None]:
    """Return the smallest difference from the baseline that a row could show, and with the correction."""
    if not sd:  # differences that do not vary tell nothing about those that would
        return {"detectable": None, "detectable_corrected": None}
    return {
        "detectable": detectable_difference(sd, count, ALPHA),
        "detectable_corrected": detectable_difference(sd, count, ALPHA / comparisons),
    }


def power(sds: list[float], baseline: Result | None, target_difference: float) -> dict[str, Any] | None:
    """Return what the examples of a group can show, by the median spread of the comparisons that have any."""
    comparisons, sds = len(sds), [sd for sd in sds if sd > 0]
    if baseline is None or not sds:
        return None
    middle, count = float(np.median(sds)), baseline["num_samples"]
    return {
        "num_samples": count,
        "comparisons": comparisons,
        "power": POWER,
        "alpha": ALPHA,
        "alpha_corrected": ALPHA / comparisons,
        "spread": middle,
        **detectable(middle, count, comparisons),
        "wished": target_difference,
        "samples_needed": samples_needed(middle, target_difference, ALPHA),
        "samples_needed_corrected": samples_needed(middle, target_difference, ALPHA / comparisons),
        "formula": POWER_FORMULA,
    }


def recovered(names: list[str], evidence: Evidence) -> dict[str, dict[str, Any]]:
    """Return the share of the way from the empty context to the clean text that each result went."""
    found: dict[str, dict[str, Any]] = {name: {"recovered": None, "recovered_interval": None} for name in names}
    if evidence.clean is None or evidence.empty is None:
        return found
    for members, (clean, empty) in evidence.families(names, evidence.clean["name"], evidence.empty["name"]):
        shares = recovered_shares(evidence.stacked(members), clean, empty, SEED)
        for name, (share, interval) in zip(members, shares, strict=True):
            found[name] = {"recovered": share, "recovered_interval": interval}
    return found


def group_controls(results: list[Result], evidence: Evidence) -> dict[str, Any] | None:
    """Compare the clean control with each lower one: the empty context, and random tokens where they were asked.

    Random tokens are those of the same source, or of the sweep where the source has none. Those that a budget left out
    after a few examples are no control: these few could not be clearly below.
    """
    if evidence.clean is None:
        return None
    lower = [evidence.empty] if evidence.empty is not None else []
    asked = [result for result in results if result["family"] == RANDOM]
    asked = [result for result in asked if result["num_samples"] >= evidence.clean["num_samples"]]
    if not asked and evidence.random is not None:
        asked = [evidence.random]
    lower += [result for result in asked if result["num_samples"] >= evidence.clean["num_samples"]]
    shown = ("name", "f1", "f1_interval", "num_samples")
    rows = []
    for control in lower:
        ids = [i for i in evidence.scores[evidence.clean["name"]][0] if i in set(evidence.scores[control["name"]][0])]
        clean, own = evidence.on(evidence.clean["name"], ids), evidence.on(control["name"], ids)
        if not ids or clean is None or own is None:
            continue
        (comparison,) = paired_bootstrap(clean[None], own, SEED)
        rows.append(
            {key: control[key] for key in shown}
            | {
                "control": RANDOM if control["family"] == RANDOM else "empty",
                "difference": comparison.difference,
                "difference_interval": comparison.interval,
                "p_value": comparison.p_value,
                "clearly_below": comparison.interval[0] > 0,
            }
        )
    return {"clean": {key: evidence.clean[key] for key in shown}, "lower": rows}


def answerable(controls: dict[str, Any] | None, min_clean_f1: float) -> tuple[bool | None, str | None]:
    """Tell whether this model, prompt and data can answer the question, by the controls; why, where they cannot."""
    if controls is None:
        return None, None
    clean = controls["clean"]
    if clean["f1"] < min_clean_f1:
        return False, f"the clean baseline reads too little: F1 {format_score(clean['f1'])}, the floor is " + (
            f"{format_score(min_clean_f1)} (min_clean_f1=...)"
        )
    for lower in controls["lower"]:
        if not lower["clearly_below"]:
            low, high = lower["difference_interval"]
            what = "an empty context" if lower["control"] == "empty" else f"random tokens ({lower['name']})"
            return False, (
                f"{what} scores F1 {format_score(lower['f1'])}, not clearly below the clean baseline's "
                f"{format_score(clean['f1'])} (difference {format_score(lower['difference'])} "
                f"[{format_score(low)}, {format_score(high)}])"
            )
    return (True if controls["lower"] else None), None


def above_empty(name: str, evidence: Evidence) -> bool:
    """Tell whether a result is clearly above the empty context on the examples that both answered."""
    if evidence.empty is None:
        return True  # older summaries have no controls; `answerable` speaks of those that lack one
    ids = [i for i in evidence.scores[name][0] if i in set(evidence.scores[evidence.empty["name"]][0])]
    own, empty = evidence.on(name, ids), evidence.on(evidence.empty["name"], ids)
    if not ids or own is None or empty is None:
        return False
    (comparison,) = paired_bootstrap(own[None], empty, SEED)
    return comparison.interval[0] > 0
