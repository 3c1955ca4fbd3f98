"""What latents cost and whether they say anything: positions and bytes against the text's own, signs of collapse."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from latentwire.encoders.collapse import mean_pairwise_cosine

BYTES_PER_NUMBER = 2  # float16: what a number of z takes on its way
COMPARED = 32  # passages whose latents are held side by side
BEGINNING = 8  # positions of each
COLLAPSED = 0.9  # mean cosine of latents of different passages, at equal positions
FEW_ANSWERS = 0.5  # distinct answers, as a share of the distinct references


@dataclass(frozen=True)
class LatentCost:
    """What stood for the passage of one example."""

    text: str  # the passage
    tokens: int  # of it
    positions: int  # that the LM read in its place
    size: int  # bytes on the way: of z


def account(
    costs: Sequence[LatentCost], latents: list[Tensor], predictions: Sequence[str], references: Sequence[str]
) -> dict[str, Any]:
    """Return the means over examples, and warnings.

    Args:
        costs: Of each example, (N,).
        latents: Of different passages, (L_i, D) each; their beginnings are compared.
        predictions: The answers, (N,).
        references: The first right answer of each.

    Returns:
        positions, text_positions, bytes, text_bytes, text_zlib_bytes (means over examples), likeness (mean cosine of
        different passages' latents at equal positions), distinct_answers and distinct_references, warnings.
    """
    count = len(costs)
    found = {
        "positions": sum(cost.positions for cost in costs) / count,
        "text_positions": sum(cost.tokens for cost in costs) / count,
        "bytes": sum(cost.size for cost in costs) / count,
        "text_bytes": sum(len(cost.text.encode()) for cost in costs) / count,
        "text_zlib_bytes": sum(len(zlib.compress(cost.text.encode(), 9)) for cost in costs) / count,
        "likeness": mean_pairwise_cosine([rows[:BEGINNING] for rows in latents]),
        "distinct_answers": len(set(predictions)),
        "distinct_references": len(set(references)),
    }
    warnings = []
    if found["likeness"] > COLLAPSED:
        warnings.append(
            f"latents of different passages have a mean cosine of {found['likeness']:.2f} at equal positions: they "
            "have collapsed, or nearly"
        )
    if count > 1 and found["distinct_answers"] < FEW_ANSWERS * found["distinct_references"]:
        warnings.append(
            f"{found['distinct_answers']} distinct answers where there are {found['distinct_references']} distinct "
            "references: the answers hardly hang on the passage"
        )
    return {**found, "warnings": warnings}
