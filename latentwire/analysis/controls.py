"""Comparisons, statistical power and controls of the results of one source.

Main entries: `compare_with_baseline()`, `group_controls()` and `answerable()`.
"""

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

SEED = 0  # seed of the bootstrap
RANDOM = "random_interpolation"  # family of the random tokens, a negative control


def is_supervised(result: Result) -> bool:
    """Return whether a transform was fitted to the true tokens, which makes it a positive control."""
    return bool((result.get("fit") or {}).get("supervised"))


def label(row: dict[str, Any]) -> str:
    """Return the name of a configuration, with a mark if it is a supervised control."""
    return f"{row['experiment']} (control)" if row.get("supervised") else str(row["experiment"])


def common(names: list[str], scores: dict[str, ById]) -> tuple[str, ...]:
    """Return the ids of the examples that all named results answered, in the order of the first result."""
    others = [set(scores[name][0]) for name in names[1:]]
    return tuple(i for i in scores[names[0]][0] if all(i in other for other in others))


def scores_on(ids: tuple[str, ...], by: ById) -> Scores:
    """Return a result's F1 on the given examples, (N,)."""
    index_of = {identifier: index for index, identifier in enumerate(by[0])}
    return by[1][[index_of[identifier] for identifier in ids]]


@dataclass
class AnalysisSettings:
    """Settings of the analysis, at the root of the config."""

    min_clean_f1: float  # below this clean F1 a source cannot rank repairs
    target_difference: float  # F1 difference for which the analysis computes the needed number of examples

    def check(self) -> None:
        """Raise UserError if a value is out of range."""
        if not 0 <= self.min_clean_f1 < 1:
            raise UserError(f"min_clean_f1={self.min_clean_f1}: must be an F1, at least 0 and below 1")
        if not 0 < self.target_difference <= 1:
            raise UserError(f"target_difference={self.target_difference}: must be an F1 difference, above 0, at most 1")


@dataclass(frozen=True)
class Evidence:
    """Baseline, controls and scores with which the results of one source are compared."""

    baseline: Result | None
    clean: Result | None  # the upper control
    empty: Result | None  # a lower control: no passage
    random: Result | None  # a lower control: random tokens, which are the same on each source
    controlled: bool  # whether the sweep ran controls, successful or not
    scores: dict[str, ById]
    settings: AnalysisSettings

    def on(self, name: str, ids: list[str]) -> Scores | None:
        """Return a result's F1 on the given examples, (N,), or None if it did not answer all of them."""
        own, values = self.scores[name]
        if own[: len(ids)] == ids:
            return values[: len(ids)]
        index_of = {identifier: index for index, identifier in enumerate(own)}
        return values[[index_of[i] for i in ids]] if all(i in index_of for i in ids) else None

    def families(self, names: list[str], *references: str) -> list[tuple[list[str], list[Scores]]]:
        """Group results by the examples that they answered.

        Args:
            names: Names of the results to group.
            references: Names of results to compare with.

        Returns:
            For each group its names and the references' scores on its examples, (N,) each. Groups with an example
            that a reference did not answer are left out.
        """
        groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for name in names:
            groups[tuple(self.scores[name][0])].append(name)
        found = []
        for ids, members in groups.items():
            others = [self.on(name, list(ids)) for name in references]
            if all(other is not None for other in others):
                found.append((members, [other for other in others if other is not None]))
        return found

    def stacked(self, names: list[str]) -> Scores:
        """Return the scores of S results that answered the same N examples, (S, N)."""
        return np.stack([self.scores[name][1] for name in names])


def compare_with_baseline(names: list[str], evidence: Evidence) -> dict[str, Comparison]:
    """Compare results with the baseline on their own examples; correct for all comparisons together.

    Args:
        names: Names of the results to compare.
        evidence: Baseline and scores of the source.

    Returns:
        The comparison of each result whose examples the baseline answered too, by its name.
    """
    if evidence.baseline is None:
        return {}
    found: dict[str, Difference] = {}
    for members, (reference,) in evidence.families(names, evidence.baseline["name"]):
        found |= zip(members, paired_bootstrap(evidence.stacked(members), reference, SEED), strict=True)
    return dict(zip(found, corrected(list(found.values())), strict=True))


def difference_stds(names: list[str], evidence: Evidence) -> dict[str, float]:
    """Return the standard deviation of each result's paired differences from the baseline."""
    if evidence.baseline is None:
        return {}
    return {
        name: std(evidence.scores[name][1] - reference)
        for members, (reference,) in evidence.families(names, evidence.baseline["name"])
        for name in members
    }


def detectable(sd: float | None, count: int, comparisons: int) -> dict[str, float | None]:
    """Return the smallest detectable difference from the baseline, without and with correction.

    Args:
        sd: Standard deviation of the paired differences.
        count: Number of examples.
        comparisons: Number of comparisons to correct for.
    """
    if not sd:  # a standard deviation of 0 gives no estimate for other differences
        return {"detectable": None, "detectable_corrected": None}
    return {
        "detectable": detectable_difference(sd, count, ALPHA),
        "detectable_corrected": detectable_difference(sd, count, ALPHA / comparisons),
    }


def power(sds: list[float], baseline: Result | None, target_difference: float) -> dict[str, Any] | None:
    """Return which differences the examples of a source can show, or None if no result differs from the baseline.

    Args:
        sds: Standard deviation of each comparison's paired differences; their median above 0 is used.
        baseline: Result of the baseline.
        target_difference: F1 difference for which the needed number of examples is computed.
    """
    comparisons, sds = len(sds), [sd for sd in sds if sd > 0]
    if baseline is None or not sds:
        return None
    median_sd, count = float(np.median(sds)), baseline["num_samples"]
    return {
        "num_samples": count,
        "comparisons": comparisons,
        "power": POWER,
        "alpha": ALPHA,
        "alpha_corrected": ALPHA / comparisons,
        "spread": median_sd,
        **detectable(median_sd, count, comparisons),
        "wished": target_difference,
        "samples_needed": samples_needed(median_sd, target_difference, ALPHA),
        "samples_needed_corrected": samples_needed(median_sd, target_difference, ALPHA / comparisons),
        "formula": POWER_FORMULA,
    }


def recovered(names: list[str], evidence: Evidence) -> dict[str, dict[str, Any]]:
    """Return each result's share of the clean score, (F1 - empty) / (clean - empty), with a 95% interval."""
    found: dict[str, dict[str, Any]] = {name: {"recovered": None, "recovered_interval": None} for name in names}
    if evidence.clean is None or evidence.empty is None:
        return found
    for members, (clean, empty) in evidence.families(names, evidence.clean["name"], evidence.empty["name"]):
        shares = recovered_shares(evidence.stacked(members), clean, empty, SEED)
        for name, (share, interval) in zip(members, shares, strict=True):
            found[name] = {"recovered": share, "recovered_interval": interval}
    return found


def group_controls(results: list[Result], evidence: Evidence) -> dict[str, Any] | None:
    """Compare the clean control with each lower control: the empty context and random tokens.

    Random tokens come from the same source, or from another source of the sweep if this one has none. Random tokens
    with fewer examples than the clean control are ignored: few examples cannot be clearly below.

    Args:
        results: Results of the source.
        evidence: Controls and scores of the source.

    Returns:
        The clean control and the lower controls with their differences, or None without a clean control.
    """
    if evidence.clean is None:
        return None
    lower = [evidence.empty] if evidence.empty is not None else []
    enough = evidence.clean["num_samples"]
    random = [result for result in results if result["family"] == RANDOM and result["num_samples"] >= enough]
    if not random and evidence.random is not None:
        random = [evidence.random]
    lower += [result for result in random if result["num_samples"] >= enough]
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
    """Return whether the controls show that this model, prompt and data can rank repairs.

    Args:
        controls: Return value of `group_controls`.
        min_clean_f1: Smallest F1 of the clean control.

    Returns:
        True, False, or None without controls; and the reason for False.
    """
    if controls is None:
        return None, None
    clean = controls["clean"]
    if clean["f1"] < min_clean_f1:
        return False, (
            f"the clean baseline scores too low: F1 {format_score(clean['f1'])}, below "
            f"min_clean_f1={format_score(min_clean_f1)}"
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
    """Return whether a result is clearly above the empty context on the examples that both answered."""
    if evidence.empty is None:
        return True  # older summaries have no controls; `answerable` handles a missing one
    ids = [i for i in evidence.scores[name][0] if i in set(evidence.scores[evidence.empty["name"]][0])]
    own, empty = evidence.on(name, ids), evidence.on(evidence.empty["name"], ids)
    if not ids or own is None or empty is None:
        return False
    (comparison,) = paired_bootstrap(own[None], empty, SEED)
    return comparison.interval[0] > 0
