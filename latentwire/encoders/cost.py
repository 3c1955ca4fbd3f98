"""The cost of latents and of their text in positions and bytes, and signs of collapse. Main entry: `account()`."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from latentwire.encoders.collapse import mean_pairwise_cosine
from latentwire.records import LatentAccount

BYTES_PER_NUMBER = 2  # z is transmitted in float16
COMPARED = 32  # number of passages whose latents are compared
BEGINNING = 8  # number of positions compared of each passage
COLLAPSED = 0.9  # mean cosine above which latents count as collapsed
FEW_ANSWERS = 0.5  # share of distinct references below which distinct answers are few


@dataclass(frozen=True)
class LatentCost:
    """The size of one example's passage, as text and as latents."""

    text: str  # the passage
    tokens: int  # number of its tokens
    positions: int  # number of positions of its latents
    size: int  # bytes of z


def account(
    costs: Sequence[LatentCost], latents: list[Tensor], predictions: Sequence[str], references: Sequence[str]
) -> LatentAccount:
    """Return the mean cost over examples, signs of collapse, and warnings.

    Args:
        costs: Cost of each example, N.
        latents: Latents of different passages, (L_i, D) each; only their first positions are compared.
        predictions: Answer to each example, N.
        references: First reference answer of each example, N.
    """
    count = len(costs)
    cosine = mean_pairwise_cosine([rows[:BEGINNING] for rows in latents])
    distinct_answers, distinct_references = len(set(predictions)), len(set(references))
    warnings = []
    if cosine > COLLAPSED:
        warnings.append(
            f"latents of different passages have a mean cosine of {cosine:.2f} at equal positions: they have "
            "collapsed, or nearly so"
        )
    if count > 1 and distinct_answers < FEW_ANSWERS * distinct_references:
        warnings.append(
            f"{distinct_answers} distinct answers where there are {distinct_references} distinct references: the "
            "answers barely depend on the passage"
        )
    return {
        "positions": sum(cost.positions for cost in costs) / count,
        "text_positions": sum(cost.tokens for cost in costs) / count,
        "bytes": sum(cost.size for cost in costs) / count,
        "text_bytes": sum(len(cost.text.encode()) for cost in costs) / count,
        "text_zlib_bytes": sum(len(zlib.compress(cost.text.encode(), 9)) for cost in costs) / count,
        "mean_pairwise_cosine": cosine,
        "distinct_answers": distinct_answers,
        "distinct_references": distinct_references,
        "warnings": warnings,
    }
