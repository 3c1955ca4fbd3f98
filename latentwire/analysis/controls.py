"""Comparisons, statistical power and controls of the results of one source.

Main entries: `compare_with_baseline()`, `group_controls()` and `answerable()`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from latentwire.analysis.records import Configuration, ControlScore, GroupControls, LowerControl, Power
from latentwire.harness.errors import UserError
from latentwire.records import ScoredResult, ShownMetric
from latentwire.stats.comparison import Comparison, corrected, paired_bootstrap, recovered_shares
from latentwire.stats.formatting import format_score
from latentwire.stats.intervals import Difference, Interval, Scores
from latentwire.stats.power import ALPHA, POWER, POWER_FORMULA, detectable_difference, samples_needed, std

ById = tuple[list[str], Scores]  # ids of the examples and their scores, both (N,)

SEED = 0  # seed of the bootstrap

# The families and the source to which the analysis gives a role. It knows no other names.
BASELINE = "baseline"  # no repair
RANDOM = "random_interpolation"  # random tokens, a negative control
AUTO = "auto"  # the automatic repair
NOT_SINGLE = (AUTO, "chain", RANDOM)  # families that are not one repair
CLEAN_SOURCE = "text"  # real token embeddings
# Family -> observation, meaning and action if it wins.
WINNERS = {
    "rms_matching": ("RMS matching wins", "magnitude mismatch", "integrate RMS calibration into the adapter"),
    "anchor_offset": ("Anchor+offset wins", "inputs must stay near tokens", "add manifold regularization"),
    "nearest_k": ("K-nearest wins", "arbitrary embeddings fail", "force convex combinations of tokens"),
}


def is_supervised(result: ScoredResult) -> bool:
    """Return whether a transform was fitted to the true tokens, which makes it a positive control."""
    return result["fit"] is not None and result["fit"]["supervised"]


def is_clean(result: ScoredResult) -> bool:
    """Return whether a result is the baseline on clean text, the upper control."""
    return (result["source"], result["family"]) == (CLEAN_SOURCE, BASELINE)


def oriented(value: float, metric: ShownMetric) -> float:
    """Return a value of the metric as a score for which higher is better: the value, or 1 - value."""
    return value if metric["higher_is_better"] else 1 - value


def score_of(result: ScoredResult, metric: ShownMetric) -> tuple[float, Interval]:
    """Return a result's mean score of the primary metric, oriented so that higher is better, with its 95% interval."""
    found = result["scores"][metric["name"]]
    low, high = sorted(oriented(end, metric) for end in found["interval"])
    return oriented(found["mean"], metric), (low, high)


def label(row: Configuration) -> str:
    """Return the name of a configuration, with a mark if it is a supervised control."""
    return f"{row['experiment']} (control)" if row["supervised"] else row["experiment"]


def common(names: Sequence[str], scores: dict[str, ById]) -> tuple[str, ...]:
    """Return the ids of the examples that all named results answered, in the order of the first result."""
    others = [set(scores[name][0]) for name in names[1:]]
    return tuple(i for i in scores[names[0]][0] if all(i in other for other in others))


def scores_on(ids: tuple[str, ...], by: ById) -> Scores:
    """Return a result's scores on the given examples, (N,)."""
    index_of = {identifier: index for index, identifier in enumerate(by[0])}
    return by[1][[index_of[identifier] for identifier in ids]]


@dataclass
class AnalysisSettings:
    """Settings of the analysis, at the root of the config."""

    min_clean_score: float  # below this score of the clean control a source cannot rank repairs
    target_difference: float  # difference of scores for which the analysis computes the needed number of examples

    def check(self) -> None:
        """Raise UserError if a value is out of range."""
        if not 0 <= self.min_clean_score < 1:
            raise UserError(f"min_clean_score={self.min_clean_score}: must be a score, at least 0 and below 1")
        if not 0 < self.target_difference <= 1:
            raise UserError(
                f"target_difference={self.target_difference}: must be a difference of scores, above 0, at most 1"
            )


@dataclass(frozen=True)
class Evidence:
    """Baseline, controls and scores with which the results of one source are compared."""

    baseline: ScoredResult | None
    clean: ScoredResult | None  # the upper control
    empty: ScoredResult | None  # a lower control: no passage
    random: ScoredResult | None  # a lower control: random tokens, which are the same on each source
    controlled: bool  # whether the sweep ran controls, successful or not
    scores: dict[str, ById]  # of every result and control, by its name
    settings: AnalysisSettings
    metric: ShownMetric

    def on(self, name: str, ids: list[str]) -> Scores | None:
        """Return a result's scores on the given examples, (N,), or None if it did not answer all of them."""
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


def power(sds: Iterable[float], baseline: ScoredResult | None, target_difference: float) -> Power | None:
    """Return which differences the examples of a source can show, or None if no result differs from the baseline.

    Args:
        sds: Standard deviation of each comparison's paired differences; their median above 0 is used.
        baseline: Result of the baseline.
        target_difference: Difference of scores for which the needed number of examples is computed.
    """
    every = list(sds)
    comparisons, positive = len(every), [sd for sd in every if sd > 0]
    if baseline is None or not positive:
        return None
    median_sd, count = float(np.median(positive)), baseline["num_samples"]
    return {
        "num_samples": count,
        "comparisons": comparisons,
        "power": POWER,
        "alpha": ALPHA,
        "alpha_corrected": ALPHA / comparisons,
        "std": median_sd,
        "detectable": detectable_difference(median_sd, count, ALPHA),
        "detectable_corrected": detectable_difference(median_sd, count, ALPHA / comparisons),
        "target_difference": target_difference,
        "samples_needed": samples_needed(median_sd, target_difference, ALPHA),
        "samples_needed_corrected": samples_needed(median_sd, target_difference, ALPHA / comparisons),
        "formula": POWER_FORMULA,
    }


def recovered(names: list[str], evidence: Evidence) -> dict[str, tuple[float | None, Interval | None]]:
    """Return each result's share of the clean score, (score - empty) / (clean - empty), with a 95% interval."""
    found: dict[str, tuple[float | None, Interval | None]] = dict.fromkeys(names, (None, None))
    if evidence.clean is None or evidence.empty is None:
        return found
    for members, (clean, empty) in evidence.families(names, evidence.clean["name"], evidence.empty["name"]):
        found |= zip(members, recovered_shares(evidence.stacked(members), clean, empty, SEED), strict=True)
    return found


def group_controls(results: list[ScoredResult], evidence: Evidence) -> GroupControls | None:
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
    compared = [_below(control, evidence.clean, evidence) for control in lower]
    return {
        "clean": _control_score(evidence.clean, evidence.metric),
        "lower": [control for control in compared if control is not None],
    }


def _control_score(result: ScoredResult, metric: ShownMetric) -> ControlScore:
    score, interval = score_of(result, metric)
    return {"name": result["name"], "score": score, "score_interval": interval, "num_samples": result["num_samples"]}


def _below(control: ScoredResult, clean: ScoredResult, evidence: Evidence) -> LowerControl | None:
    """Return a lower control compared with the clean one, or None if they share no examples."""
    ids = [i for i in evidence.scores[clean["name"]][0] if i in set(evidence.scores[control["name"]][0])]
    upper, own = evidence.on(clean["name"], ids), evidence.on(control["name"], ids)
    if not ids or upper is None or own is None:
        return None
    (comparison,) = paired_bootstrap(upper[None], own, SEED)
    return {
        **_control_score(control, evidence.metric),
        "control": RANDOM if control["family"] == RANDOM else "empty",
        "difference": comparison.difference,
        "difference_interval": comparison.interval,
        "p_value": comparison.p_value,
        "clearly_below": comparison.interval[0] > 0,
    }


def answerable(
    controls: GroupControls | None, min_clean_score: float, metric: ShownMetric
) -> tuple[bool | None, str | None]:
    """Return whether the controls show that this model, prompt and data can rank repairs.

    Args:
        controls: Return value of `group_controls`.
        min_clean_score: Smallest score of the clean control.
        metric: Metric of the scores.

    Returns:
        True, False, or None without controls; and the reason for False.
    """
    if controls is None:
        return None, None
    clean = controls["clean"]
    if clean["score"] < min_clean_score:
        return False, (
            f"the clean baseline scores too low: {metric['label']} {format_score(clean['score'])}, below "
            f"min_clean_score={format_score(min_clean_score)}"
        )
    for lower in controls["lower"]:
        if not lower["clearly_below"]:
            low, high = lower["difference_interval"]
            what = "an empty context" if lower["control"] == "empty" else f"random tokens ({lower['name']})"
            return False, (
                f"{what} scores {metric['label']} {format_score(lower['score'])}, not clearly below the clean "
                f"baseline's {format_score(clean['score'])} (difference {format_score(lower['difference'])} "
                f"[{format_score(low)}, {format_score(high)}])"
            )
    return (True if controls["lower"] else None), None


def above_empty(name: str, evidence: Evidence) -> bool:
    """Return whether a result is clearly above the empty context on the examples that both answered."""
    if evidence.empty is None:
        return True  # `answerable` handles a missing control
    ids = [i for i in evidence.scores[name][0] if i in set(evidence.scores[evidence.empty["name"]][0])]
    own, empty = evidence.on(name, ids), evidence.on(evidence.empty["name"], ids)
    if not ids or own is None or empty is None:
        return False
    (comparison,) = paired_bootstrap(own[None], empty, SEED)
    return comparison.interval[0] > 0
