"""What the ranking of one source shows, in words. Main entries: `observe()` and `conclude()`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from latentwire.analysis.controls import CLEAN_SOURCE, WINNERS
from latentwire.analysis.records import GroupVerdict, RankingObservation, RankingRow
from latentwire.records import ScoredResult, ShownMetric
from latentwire.stats.formatting import format_score
from latentwire.stats.intervals import Interval

DEAD = 0.05  # below this score the model does not use the passage


@dataclass(frozen=True)
class Ranked:
    """The ranking of a source and which of its configurations win."""

    baseline: ScoredResult | None
    baseline_score: tuple[float, Interval] | None  # with its 95% interval
    rows: Sequence[RankingRow]
    metric: ShownMetric
    reason: str | None  # why nothing can be ranked
    winners: Sequence[RankingRow] = ()  # configurations that may win, best first
    level: Sequence[str] = field(default=())  # names of configurations that may be as good as the best


def observe(ranked: Ranked) -> list[RankingObservation]:
    """Return the five observations, each with "yes", "no", or why the results do not decide it."""
    score = ranked.metric["label"]
    top = {row["name"] for place, row in enumerate(ranked.winners) if place == 0 or row["name"] in ranked.level}
    table = [
        (f"Baseline {score} > 0.5", "the LM can use these embeddings", "look at the encoder's distribution",
         _baseline_is_high(ranked)),
        *((*about, _wins(family, ranked, top)) for family, about in WINNERS.items()),
        ("Everything fails", "inputs_embeds broken, or no repair works", "debug the generation set-up",
         _all_fail(ranked)),
    ]  # fmt: skip
    return [
        {"observation": observation, "meaning": meaning, "action": action, "holds": holds}
        for observation, meaning, action, holds in table
    ]


def _baseline_is_high(ranked: Ranked) -> str:
    if ranked.baseline_score is None:
        return "unknown: no baseline among the results"
    score, (low, high) = ranked.baseline_score
    holds = "yes" if low > 0.5 else "no" if high < 0.5 else "undecided, the interval contains .5"
    return f"{holds}: {format_score(score)} [{format_score(low)}, {format_score(high)}]"


def _wins(family: str, ranked: Ranked, top: set[str]) -> str:
    """Return whether a family wins.

    Args:
        family: Name of a transform.
        ranked: Ranking of the source.
        top: Names of the winner and of the configurations level with it.
    """
    members = [row for row in ranked.rows if row["family"] == family]
    verdicts = {row["verdict"] for row in members}
    winning = [row["experiment"] for row in members if row["name"] in top]
    if not members:
        return "unknown: not in this sweep"
    if ranked.baseline is None:
        return "unknown: no baseline among the results"
    if ranked.reason is not None:
        return "unknown: the controls show that nothing can be ranked"
    if winning:
        others = len(top) - len(winning)
        return f"yes: {winning[0]}" + (f", level with {others} of other families" if others else "")
    if "better" in verdicts:
        best = ranked.winners[0]["experiment"] if ranked.winners else None
        behind = f"behind {best}" if best is not None else "not clearly above an empty context"
        return f"no: better than the baseline, but {behind}"
    if verdicts == {"identity"}:
        return "no: changed nothing on this source"
    if verdicts <= {"worse", "identity"}:
        return "no: worse than the baseline"
    return "undecided: within noise of the baseline"


def _all_fail(ranked: Ranked) -> str:
    if max(row["score_interval"][1] for row in ranked.rows) < DEAD:
        return f"yes: no interval reaches {format_score(DEAD)}"
    if all(row["score"] < DEAD for row in ranked.rows):
        return f"nearly: no {ranked.metric['label']} reaches {format_score(DEAD)}"
    return "no"


def conclude(ranked: Ranked) -> GroupVerdict:
    """Return the winner if the comparisons show one, the verdict, and the next step."""
    if ranked.reason is not None:
        return {
            "winner": None,
            "verdict": f"This model, prompt and data cannot answer the question: {ranked.reason}. No winner is named.",
            "next": "Choose a model that uses the passages (model=...), more shots, or other data. "
            "If the controls are close together, raise samples.",
        }
    if ranked.baseline is None or ranked.baseline_score is None:
        return {
            "winner": None,
            "verdict": "Nothing can be compared: the baseline failed, or an earlier version ran the sweep without one.",
            "next": "Fix its error, if any, and run the same command again; finished results are not run twice.",
        }
    if not ranked.winners:
        return _no_winner(ranked, ranked.baseline["source"] == CLEAN_SOURCE)
    best = ranked.winners[0]
    dials = " ".join(f"{dial}={value}" for dial, value in best["dials"].items())
    tied = [row["experiment"] for row in ranked.rows if row["name"] in ranked.level]
    ties = f", level with {', '.join(tied[:4])}{' and more' if len(tied) > 4 else ''}" if tied else ""
    return {
        "winner": best["name"],
        "verdict": f"{best['experiment']} is best{_quoted(ranked)}, baseline "
        f"{format_score(ranked.baseline_score[0])}{ties}.",
        "next": f"Integrate embed_transform={best['family']} {dials}".rstrip()
        + (", or the cheapest configuration level with it" if ranked.level else "")
        + ".",
    }


def _quoted(ranked: Ranked) -> str:
    """Return the score of the best configuration that may be quoted: the cross-fit one if there was a choice."""
    best, metric = ranked.winners[0], ranked.metric
    chosen = best["cross_fit"]
    score, (low, high) = best["score"], best["score_interval"]
    if chosen is not None:
        score, (low, high) = chosen["score"], chosen["score_interval"]
    among = "" if chosen is None else f" of {chosen['among']}"
    if any(row["name"] in ranked.level and row["score"] > best["score"] for row in ranked.rows):
        among = " of those better than the baseline"  # a higher score is within noise of the baseline
    where = "" if chosen is None else " on passages that did not choose it"
    return f"{among}: {metric['label']} {format_score(score)} [{format_score(low)}, {format_score(high)}]{where}"


def _no_winner(ranked: Ranked, clean: bool) -> GroupVerdict:
    """Return the verdict without a winner. `clean`: whether the source is clean text."""
    better = [row["experiment"] for row in ranked.rows if row["verdict"] == "better"]
    worse = sum(row["verdict"] == "worse" for row in ranked.rows)
    compared = sum(row["p_holm"] is not None for row in ranked.rows)
    if better:
        verdict = (
            f"No winner: only {', '.join(better[:4])} {'is' if len(better) == 1 else 'are'} better than the "
            "baseline, and each is a control, has fewer examples, or is not clearly above an empty context."
        )
    elif worse:
        verdict = f"No winner: {worse} of {compared} configurations are worse than the baseline, none is better."
    else:
        verdict = "No winner: every difference from the baseline is within noise."
    if clean:
        advice = "The LM already reads its own tokens. Choose a source that it cannot read, such as "
        advice += "embed_source=scaled or embed_source=noisy."
    else:
        advice = "Integrate nothing on this evidence; more samples could show smaller differences."
    return {"winner": None, "verdict": verdict, "next": advice}
