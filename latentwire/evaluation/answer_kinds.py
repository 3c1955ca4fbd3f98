"""Scores by kind of answer: with a digit, names, and the rest. Main entries: `by_kind()`, `render_kinds()`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

from latentwire.stats.clusters import SampledClusters
from latentwire.stats.formatting import format_score
from latentwire.stats.intervals import Interval, Scores, mean_interval

KINDS = {"digit": "with a digit", "name": "names", "rest": "the rest"}


class KindScore(TypedDict):
    """Mean F1 of one source over the answers of a kind, with its 95% interval over passages."""

    f1: float
    f1_interval: Interval


class KindRow(TypedDict):
    """Scores of the sources on one kind of answer."""

    kind: str  # a key of KINDS
    num_samples: int
    scores: dict[str, KindScore]  # by the name of the source


def kind_of(answer: str) -> str:
    """Return the kind of an answer, a key of KINDS; a name begins with a capital and has no digit."""
    if any(character.isdigit() for character in answer):
        return "digit"
    return "name" if answer[:1].isupper() else "rest"


def by_kind(f1: Mapping[str, Scores], answers: Sequence[str], passages: Sequence[str]) -> list[KindRow]:
    """Return the scores on each kind of answer that occurs.

    Args:
        f1: F1 of each example, (N,), by the name of the source.
        answers: First right answer of each example, N.
        passages: Passage of each example, N; passages are the units that are resampled.
    """
    kinds = [kind_of(answer) for answer in answers]
    rows: list[KindRow] = []
    for kind in KINDS:
        places = [place for place, own in enumerate(kinds) if own == kind]
        if not places:
            continue
        clusters = SampledClusters([passages[place] for place in places])
        scores: dict[str, KindScore] = {
            name: {"f1": float(np.mean(values[places])), "f1_interval": mean_interval(values[places], clusters)}
            for name, values in f1.items()
        }
        rows.append({"kind": kind, "num_samples": len(places), "scores": scores})
    return rows


def render_kinds(rows: Sequence[KindRow], titles: Mapping[str, str]) -> list[str]:
    """Return the table of `by_kind` as lines.

    Args:
        rows: The rows.
        titles: Title of each column, by the name of the source; sources without a score are left out.
    """
    columns = [name for name in titles if all(name in row["scores"] for row in rows)]
    lines = [f"{'F1 by kind of answer':24}{'n':>5}" + "".join(f"{titles[name]:>20}" for name in columns)]
    for row in rows:
        cells = [row["scores"][name] for name in columns]
        shown = [(format_score(cell["f1"]), *map(format_score, cell["f1_interval"])) for cell in cells]
        values = "".join(f"{f'{mean} [{low}, {high}]':>20}" for mean, low, high in shown)
        lines.append(f"{KINDS[row['kind']]:24}{row['num_samples']:>5}" + values)
    return lines
