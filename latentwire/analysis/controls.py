"""Baseline, controls and scores of one source. Main entries: `Evidence`, `group_controls()` and `answerable()`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from latentwire.analysis.records import Configuration, ControlScore, GroupControls, LowerControl
from latentwire.harness.errors import UserError
from latentwire.records import ScoredResult, ShownMetric
from latentwire.stats.clusters import SampledClusters
from latentwire.stats.comparison import PairedDifference, paired_differences
from latentwire.stats.formatting import format_score
from latentwire.stats.intervals import Interval, Scores, mean_interval

SEED = 0  # seed of all resampling
LARGEST = 1.0  # largest difference of two scores of an example

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


class ById(NamedTuple):
    """The scores of one result by example."""

    ids: list[str]  # ids of the examples, (N,)
    scores: Scores  # primary metric in [0, 1], oriented so that higher is better, (N,)
    passages: list[str]  # passage of each example, (N,); passages are the units that are resampled


class Shared(NamedTuple):
    """Results that answered the same examples, with the scores of others on them."""

    names: list[str]
    scores: Scores  # of the S named results, (S, N)
    references: list[Scores]  # of the results that they are compared with, (N,) each
    clusters: SampledClusters  # the passages


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
    others = [set(scores[name].ids) for name in names[1:]]
    return tuple(i for i in scores[names[0]].ids if all(i in other for other in others))


def scores_on(ids: Sequence[str], by: ById) -> Scores:
    """Return a result's scores on the given examples, (N,)."""
    index_of = {identifier: index for index, identifier in enumerate(by.ids)}
    return by.scores[[index_of[identifier] for identifier in ids]]


def passages_of(ids: Sequence[str], by: ById) -> SampledClusters:
    """Return the passages of the given examples of a result."""
    passage_of = dict(zip(by.ids, by.passages, strict=True))
    return SampledClusters([passage_of[identifier] for identifier in ids])


def paired(one: str, other: str, scores: dict[str, ById]) -> PairedDifference | None:
    """Return the difference of one result from another on the examples that both answered; None without any."""
    ids = common([one, other], scores)
    if not ids:
        return None
    own, reference = (scores_on(ids, scores[name]) for name in (one, other))
    (found,) = paired_differences(own[None], reference, SEED, passages_of(ids, scores[one]), LARGEST)
    return found


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
    scrambled: ScoredResult | None  # the best contender on passages of other examples
    controlled: bool  # whether the sweep ran controls, successful or not
    scores: dict[str, ById]  # of every result and control, by its name
    settings: AnalysisSettings
    metric: ShownMetric

    def shared(self, names: Sequence[str], *references: str) -> list[Shared]:
        """Group results by the examples that they answered.

        Args:
            names: Names of the results to group.
            references: Names of results to compare with.

        Returns:
            The groups. A group with an example that a reference did not answer is left out.
        """
        groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for name in names:
            groups[tuple(self.scores[name].ids)].append(name)
        found = []
        for ids, members in groups.items():
            if all(set(ids) <= set(self.scores[reference].ids) for reference in references):
                stacked = np.stack([self.scores[name].scores for name in members])
                others = [scores_on(ids, self.scores[reference]) for reference in references]
                found.append(Shared(members, stacked, others, passages_of(ids, self.scores[members[0]])))
        return found

    def score(self, name: str) -> tuple[float, Interval]:
        """Return a result's mean score with its 95% interval over passages."""
        own = self.scores[name]
        return float(own.scores.mean()), mean_interval(own.scores, SampledClusters(own.passages))


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
        "clean": _control_score(evidence.clean, evidence),
        "lower": [control for control in compared if control is not None],
        "scrambled": None if evidence.scrambled is None else _control_score(evidence.scrambled, evidence),
    }


def _control_score(result: ScoredResult, evidence: Evidence) -> ControlScore:
    name = result["name"]
    score, interval = evidence.score(name)
    return {"name": name, "score": score, "score_interval": interval, "num_samples": len(evidence.scores[name].ids)}


def _below(control: ScoredResult, clean: ScoredResult, evidence: Evidence) -> LowerControl | None:
    """Return a lower control compared with the clean one, or None if they share no examples."""
    comparison = paired(clean["name"], control["name"], evidence.scores)
    if comparison is None:
        return None
    return {
        **_control_score(control, evidence),
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
    comparison = paired(name, evidence.empty["name"], evidence.scores)
    return comparison is not None and comparison.interval[0] > 0
