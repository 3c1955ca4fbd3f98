"""Latents compared with their controls, example by example. Main entries: `compare_with_controls()`, `render_report()`.

Records of the task latent_report: what it stores for each source, and report.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from latentwire.evaluation.answer_kinds import KindRow, by_kind, render_kinds
from latentwire.records import LatentAccount, Measured
from latentwire.stats.clusters import SampledClusters
from latentwire.stats.comparison import Comparison, compare_paired
from latentwire.stats.formatting import format_p, format_score
from latentwire.stats.intervals import Interval, Scores, mean_interval
from latentwire.stats.power import ALPHA
from latentwire.stats.seeds import interval_over_clusters

TITLES = {"text": "whole text", "latent": "latents", "cut": "text cut to as many tokens",
          "style": "cut text with a learned style", "chosen": "chosen words as real tokens",
          "averaged": "averages of neighbouring tokens", "empty": "no passage"}  # fmt: skip
KIND_TITLES = {"latent": "latents", "cut": "text cut", "style": "with style", "chosen": "chosen words",
               "text": "whole text"}  # fmt: skip


@dataclass(frozen=True)
class SourceScores:
    """Scores of one source over N examples."""

    answers: Measured
    f1: Scores  # of each example, (N,)
    nll: Scores  # negative log-likelihood of each first right answer, nats a token, (N,)
    kl: Scores  # KL(LM given the text || LM given the source) over that answer, nats a token, (N,)
    passages: list[str]  # passage of each example, (N,); passages are the units that are resampled
    references: list[str]  # first right answer to each example, (N,)


class Against(TypedDict):
    """The latents minus another source, over the same examples."""

    latents_minus_this: float
    interval: Interval
    p_holm: float


class SourceRow(TypedDict):
    """Scores of a source in the report, with 95% intervals over passages."""

    source: str
    title: str
    positions: float  # mean number of positions that stand for the passage
    f1: float
    f1_interval: Interval
    em: float
    nll: float
    nll_interval: Interval
    kl: float
    kl_interval: Interval


class ReportRow(SourceRow):
    """A source in the report, compared with the latents."""

    f1_against: Against | None  # None for the latents
    nll_against: Against | None


class LatentComparison(TypedDict):
    """The comparison of latents with their controls."""

    encoder: str
    num_samples: int
    rows: list[ReportRow]
    latents: LatentAccount
    share_of_text: float | None  # F1 of the latents divided by F1 of the text; None if the text has 0
    beats: list[str]  # controls with at most as many positions and a lower F1, at a Holm-corrected 5%
    beats_all: bool
    likelier_than: list[str]  # controls under which the right answers are less likely, at a Holm-corrected 5%
    kinds: list[KindRow]  # F1 by kind of answer


def compare_with_controls(encoder: str, sources: Mapping[str, SourceScores], seed: int) -> LatentComparison:
    """Compare the latents with each other source, example by example.

    Args:
        encoder: Name of the encoder.
        sources: Scores of each source, by its name, in the same order of examples.
        seed: Seed of the random splits.
    """
    others = [name for name in sources if name != "latent"]
    clusters = SampledClusters(sources["latent"].passages)
    f1 = _against_latents({name: own.f1 for name, own in sources.items()}, clusters, seed, 1.0)
    nll = _against_latents({name: own.nll for name, own in sources.items()}, clusters, seed, None)
    measured = sources["latent"].answers
    latents = measured["latents"]
    assert latents is not None, "the source latent replaces only the passage"
    equal = [name for name in others if name != "text"]  # with at most as many positions
    below = [name for name in equal if f1[name].difference < 0 and f1[name].p_holm < ALPHA]
    of_text = sources["text"].answers["f1"]
    return {
        "encoder": encoder,
        "num_samples": measured["num_samples"],
        "rows": [
            {
                **_row(name, own, latents["text_positions"], clusters),
                "f1_against": _against(f1.get(name)),
                "nll_against": _against(nll.get(name)),
            }
            for name, own in sources.items()
        ],
        "latents": latents,
        "share_of_text": measured["f1"] / of_text if of_text else None,
        "beats": below,
        "beats_all": below == equal,
        "likelier_than": [name for name in equal if nll[name].difference > 0 and nll[name].p_holm < ALPHA],
        "kinds": by_kind(
            {name: own.f1 for name, own in sources.items()}, sources["latent"].references, sources["latent"].passages
        ),
    }


def _against_latents(
    values: Mapping[str, Scores], clusters: SampledClusters, seed: int, largest: float | None
) -> dict[str, Comparison]:
    """Return the comparison of each other source with the latents, by its name."""
    others = [name for name in values if name != "latent"]
    systems = np.array([values[name] for name in others])
    compared = compare_paired(systems, values["latent"], seed, clusters, largest)
    return dict(zip(others, compared, strict=True))


def _row(name: str, own: SourceScores, text_positions: float, clusters: SampledClusters) -> SourceRow:
    answers = own.answers
    latents = answers["latents"]
    return {
        "source": name,
        "title": TITLES[name],
        "positions": text_positions if latents is None else latents["positions"],
        "f1": answers["f1"],
        "f1_interval": mean_interval(own.f1, clusters),
        "em": answers["em"],
        "nll": float(own.nll.mean()),
        "nll_interval": interval_over_clusters(own.nll, clusters, 0.0),
        "kl": float(own.kl.mean()),
        "kl_interval": interval_over_clusters(own.kl, clusters, 0.0),
    }


def _against(compared: Comparison | None) -> Against | None:
    """Return latents minus source, from a comparison of the source with the latents."""
    if compared is None:
        return None
    low, high = compared.interval
    interval = (0.0 - high, 0.0 - low)
    return {"latents_minus_this": 0.0 - compared.difference, "interval": interval, "p_holm": compared.p_holm}


def render_report(comparison: LatentComparison) -> str:
    """Return the report as text."""
    latents = comparison["latents"]
    lines = [
        f"{comparison['encoder']}, {comparison['num_samples']} examples; only the passage is encoded, the question "
        "stays text",
        "",
        f"{'':34}{'positions':>10}   F1    95% interval   latents minus this row",
    ]
    for row in comparison["rows"]:
        low, high = (format_score(end) for end in row["f1_interval"])
        line = f"{row['title']:34}{row['positions']:>10.1f}   {format_score(row['f1'])}  [{low}, {high}]"
        lines.append(line + _difference(row["f1_against"]))
    lines += ["", f"{'nats a token of the right answer':34}{'KL to the text':>20}{'NLL':>20}   latents minus this row"]
    for row in comparison["rows"]:
        kl = "0" if row["source"] == "text" else _nats(row["kl"], row["kl_interval"])
        line = f"{row['title']:34}{kl:>20}{_nats(row['nll'], row['nll_interval']):>20}"
        lines.append(line + _difference(row["nll_against"]))
    lines += ["", *render_kinds(comparison["kinds"], KIND_TITLES)]
    share = comparison["share_of_text"]
    lines += [
        "",
        f"Bytes a passage: latents {latents['bytes']:.0f} (z in float16), text {latents['text_bytes']:.0f}, compressed "
        f"{latents['text_zlib_bytes']:.0f}"
        + (": the latents save positions, not bytes" if latents["bytes"] > latents["text_zlib_bytes"] else ""),
        f"Different passages: mean cosine of their latents {latents['mean_pairwise_cosine']:.2f}; "
        f"{latents['distinct_answers']} distinct answers, {latents['distinct_references']} distinct references",
        "Share of the whole text's F1: " + ("undefined, the text has F1 0" if share is None else f"{share:.0%}"),
        "F1 is higher, p < .05, than with: " + _named(comparison["beats"]),
        "Right answers are likelier, p < .05, than with: " + _named(comparison["likelier_than"]),
    ]
    return "\n".join([*lines, *(f"warning: {warning}" for warning in latents["warnings"])])


def _nats(value: float, interval: Interval) -> str:
    return f"{value:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"


def _difference(against: Against | None) -> str:
    if against is None:
        return ""
    low, high = against["interval"]
    return f"   {against['latents_minus_this']:+.3f} [{low:+.3f}, {high:+.3f}] {format_p(against['p_holm'])}"


def _named(sources: list[str]) -> str:
    return ", ".join(TITLES[name] for name in sources) or "none of the controls"
