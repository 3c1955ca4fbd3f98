"""Is a large norm of latents harmful, needed or indifferent? Main entry: `judge_norm()`.

Pure functions over scores. S is the number of seeds, F the number of factors, N the number of questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NotRequired, TypedDict

import numpy as np

from latentwire.stats.clusters import SampledClusters
from latentwire.stats.comparison import compare_paired, corrected
from latentwire.stats.formatting import format_score
from latentwire.stats.intervals import Interval, Scores, mean_interval
from latentwire.stats.power import ALPHA
from latentwire.stats.seeds import equivalence_over_seeds, interval_over_clusters, mean_over_seeds

LONG = 3.0  # latents whose RMS is more than this many times the tokens' count as long
MARGIN = 0.05  # largest difference in F1 that does not matter
Verdict = Literal["harmful", "needed", "mixed", "indifferent", "undecided"]
OPENING: dict[Verdict, str] = {
    "harmful": "A large norm of latents is harmful here",
    "needed": "A large norm of latents is needed here",
    "mixed": "A large norm of latents is harmful or needed here, by its size",
    "indifferent": "The norm of latents is indifferent here",
    "undecided": "Whether a large norm of latents matters is undecided here",
}


@dataclass(frozen=True)
class KindScores:
    """The scores of a kind of inputs: tokens, or latents that were trained in one way.

    Attributes:
        kind: Name of the kind.
        f1: F1 of each question, (S, F, N); one seed for tokens.
        length: RMS at factor 1, in units of the tokens'.
    """

    kind: str
    f1: Scores
    length: float


class NormPoint(TypedDict):
    """F1 of a kind at a factor."""

    factor: float
    f1: float
    interval: Interval


class NormCurve(TypedDict):
    """F1 of a kind by factor."""

    kind: str
    seeds: int
    over: Literal["seeds", "passages"]  # what the intervals are over
    length: float  # RMS at factor 1, in units of the tokens'
    points: list[NormPoint]
    tolerated: Interval  # lowest and highest factor within which no F1 differs from the one at factor 1


class KindDifference(TypedDict):
    """A kind minus the reference at factor 1, paired by seed."""

    kind: str
    length: float
    seeds: int
    difference: float
    interval: NotRequired[Interval]  # 95% over seeds; missing for one seed
    p_holm: NotRequired[float]  # corrected for the number of kinds; missing for one seed
    p_equal: NotRequired[float]  # of the hypothesis that the difference is MARGIN or more; missing for one seed


class NormVerdict(TypedDict):
    """What the sweep shows of the norm."""

    verdict: Verdict
    sentence: str
    reference: str  # the kind of latents whose length is nearest to the tokens'
    differences: list[KindDifference]


def norm_curve(scores: KindScores, factors: Sequence[float], passages: Sequence[str], seed: int) -> NormCurve:
    """Return F1 by factor with intervals, and the factors that change nothing.

    The intervals are over seeds, or over passages for one seed. `tolerated` compares each factor with factor 1 by
    question, with Holm's correction; a question's score is its mean over seeds.

    Args:
        scores: Scores of one kind.
        factors: Factors in ascending order, 1 among them, F.
        passages: Passage of each question, N.
        seed: Seed of the tests.
    """
    clusters, seeds = SampledClusters(passages), len(scores.f1)
    by_question = scores.f1.mean(axis=0)  # (F, N)
    means = scores.f1.mean(axis=2).T  # (F, S)
    if seeds > 1:
        found = [(own.difference, _within(own.interval)) for own in mean_over_seeds(means)]
    else:
        found = [(float(own.mean()), mean_interval(own, clusters)) for own in by_question]
    one = list(factors).index(1.0)
    others = [place for place in range(len(factors)) if place != one]
    compared = compare_paired(by_question[others], by_question[one], seed, clusters, largest=1.0)
    changed = {place for place, own in zip(others, compared, strict=True) if own.p_holm < ALPHA}
    low = max((place for place in changed if place < one), default=-1) + 1
    high = min((place for place in changed if place > one), default=len(factors)) - 1
    return {
        "kind": scores.kind, "seeds": seeds, "over": "seeds" if seeds > 1 else "passages", "length": scores.length,
        "points": [
            {"factor": factor, "f1": mean, "interval": interval}
            for factor, (mean, interval) in zip(factors, found, strict=True)
        ],
        "tolerated": (factors[low], factors[high]),
    }  # fmt: skip


def _within(interval: Interval) -> Interval:
    return max(0.0, interval[0]), min(1.0, interval[1])


def judge_norm(
    latents: Sequence[KindScores], one: int, empty: Scores, passages: Sequence[str], seed: int
) -> NormVerdict:
    """Compare kinds of latents at factor 1, and say whether a large norm is harmful, needed or indifferent.

    The reference is the kind whose length is nearest to the tokens'. Long kinds are more than LONG times as long as
    tokens. The norm is harmful if a long kind is worse than the reference and none is better; needed if one is better
    and none is worse; mixed if both occur; indifferent if every long kind is within MARGIN of the reference. Otherwise
    it is undecided, and also if the reference answers no better than without the passage.

    Args:
        latents: Scores of the kinds of latents, with the same seeds.
        one: Index of factor 1.
        empty: F1 of each question without its passage, (N,).
        passages: Passage of each question, N.
        seed: Seed of the tests.
    """
    reference = min(latents, key=lambda own: abs(np.log(own.length)))
    others = [own for own in latents if own is not reference]
    differences = _differences(reference, others, one)
    at_one = reference.f1[:, one].mean(axis=0)  # (N,)
    (reads,) = compare_paired(at_one[None], empty, seed, SampledClusters(passages), largest=1.0)
    verdict: Verdict = "undecided"
    long = [own for own in differences if own["length"] > LONG]
    worse = [own for own in long if own.get("p_holm", 1.0) < ALPHA and own["difference"] < 0]
    better = [own for own in long if own.get("p_holm", 1.0) < ALPHA and own["difference"] > 0]
    if reads.p_value >= ALPHA or reads.difference <= 0:
        reason = f"{reference.kind} answers no better than without the passage, so this sweep shows nothing of the norm"
    elif not long:
        reason = f"no kind of latents is more than {LONG:g} times as long as tokens"
    elif worse or better:
        verdict = "mixed" if worse and better else "harmful" if worse else "needed"
        reason = "; ".join(f"{own['kind']} is {_text(own)} against {reference.kind}" for own in worse + better)
    elif all(own.get("p_equal", 1.0) < ALPHA for own in long):
        verdict = "indifferent"
        reason = f"all long latents are within {format_score(MARGIN)} F1 of {reference.kind}"
    else:
        reason = "no difference is shown, nor that there is none: " + "; ".join(
            f"{own['kind']} {_text(own)}" for own in long
        )
    return {
        "verdict": verdict,
        "sentence": f"{OPENING[verdict]}: {reason}.",
        "reference": reference.kind,
        "differences": differences,
    }


def _differences(reference: KindScores, others: Sequence[KindScores], one: int) -> list[KindDifference]:
    """Return each kind minus the reference at factor 1, with tests over seeds if there are several."""
    rows: list[KindDifference] = []
    pairs = [own.f1[:, one].mean(axis=1) - reference.f1[:, one].mean(axis=1) for own in others]  # (S,) each
    for own, values in zip(others, pairs, strict=True):
        rows.append({"kind": own.kind, "length": own.length, "seeds": len(values), "difference": float(values.mean())})
    if pairs and len(pairs[0]) > 1:
        tested = corrected(mean_over_seeds(np.array(pairs)))
        equal = equivalence_over_seeds(np.array(pairs), [MARGIN] * len(pairs))
        for row, test, same in zip(rows, tested, equal, strict=True):
            row["interval"], row["p_holm"], row["p_equal"] = test.interval, test.p_holm, same.p_value
    return rows


def _text(own: KindDifference) -> str:
    interval = own.get("interval")
    ends = "" if interval is None else f" [{interval[0]:+.3f}, {interval[1]:+.3f}]"
    return f"{own['difference']:+.3f} F1{ends}"


class LayerRow(TypedDict):
    """The residual stream of a kind after a layer: means over passages with 95% intervals."""

    kind: str
    factor: float
    layer: int  # 0: the input
    rms: float
    rms_interval: Interval
    turn: float | None  # cosine between the states before and after the layer; None for the input
    turn_interval: Interval | None
    from_input: float | None  # cosine between the input and the state after the layer; None for the input
    from_input_interval: Interval | None
    passages: int


def layer_rows(kind: str, factor: float, rms: Scores, turn: Scores, from_input: Scores) -> list[LayerRow]:
    """Return a row for the input and each of L layers.

    Args:
        kind: Name of the kind.
        factor: Number by which its inputs were multiplied.
        rms: RMS of each passage's input and states, means over seeds, (P, L + 1).
        turn: Cosines between the states before and after each layer, (P, L).
        from_input: Cosines between the input and the state after each layer, (P, L).
    """
    clusters = SampledClusters.single(len(rms))
    rows: list[LayerRow] = []
    for layer in range(rms.shape[1]):
        row: LayerRow = {
            "kind": kind, "factor": factor, "layer": layer, "rms": float(rms[:, layer].mean()),
            "rms_interval": interval_over_clusters(rms[:, layer], clusters, 0.0), "turn": None, "turn_interval": None,
            "from_input": None, "from_input_interval": None, "passages": len(rms),
        }  # fmt: skip
        if layer:
            before, start = turn[:, layer - 1], from_input[:, layer - 1]
            row["turn"], row["turn_interval"] = float(before.mean()), interval_over_clusters(before, clusters, -1.0)
            row["from_input"] = float(start.mean())
            row["from_input_interval"] = interval_over_clusters(start, clusters, -1.0)
        rows.append(row)
    return rows


Measure = Literal["own", "group", "in_passage", "other", "cosine"]
MEASURES: tuple[Measure, ...] = ("own", "group", "in_passage", "other", "cosine")


class NearnessRow(TypedDict):
    """How near latents are to tokens, for questions that they answer right or not: means with 95% intervals."""

    kind: str
    answers: Literal["right", "not right"]
    questions: int  # over all seeds
    passages: int
    means: dict[str, float]  # by MEASURES
    intervals: dict[str, Interval]
    random_cosine: float


def nearness_rows(
    kind: str, right: Scores, passages: Sequence[str], values: dict[str, Scores], random_cosine: float
) -> list[NearnessRow]:
    """Return a row for the questions that are answered right (F1 of 1), and a row for the others.

    Args:
        kind: Name of the kind.
        right: 1 for each question that is answered right, else 0; the questions of all seeds, (S N,).
        passages: Passage of each of these questions, the unit of the intervals.
        values: By MEASURES, the mean over the latents of each question's passage, (S N,).
        random_cosine: Mean cosine of random directions with their nearest tokens.
    """
    rows: list[NearnessRow] = []
    for answers, chosen in (("right", right == 1), ("not right", right != 1)):
        if not chosen.any():
            continue
        clusters = SampledClusters([passage for passage, own in zip(passages, chosen, strict=True) if own])
        shares = {name: values[name][chosen] for name in MEASURES}
        rows.append({
            "kind": kind, "answers": "right" if answers == "right" else "not right", "questions": int(chosen.sum()),
            "passages": clusters.count, "means": {name: float(own.mean()) for name, own in shares.items()},
            "intervals": {
                name: interval_over_clusters(own, clusters, -1.0) if name == "cosine" else mean_interval(own, clusters)
                for name, own in shares.items()
            },
            "random_cosine": random_cosine,
        })  # fmt: skip
    return rows


class NormAnalysis(TypedDict):
    """All that sweep=latent_norm found."""

    factors: list[float]
    questions: int
    passages: int
    empty: NormPoint  # without the passage
    curves: list[NormCurve]  # tokens first
    verdict: NormVerdict
    layers: list[LayerRow]
    nearness: list[NearnessRow]
