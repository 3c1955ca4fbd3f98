"""Encoders of a passage: text or its token embeddings -> latents z, and the adapter from z to the LM's width.

    passage (T tokens) -> encoder -> z (L, Z) -> adapter -> (L, D)

z is what would travel; the adapter stands on the LM's side. Each encoder says how many positions L it makes of T.
"""

from __future__ import annotations

from typing import Any

from latentwire.encoders.base import Encoder
from latentwire.encoders.bottleneck import Bottleneck
from latentwire.encoders.byte import ByteEncoder
from latentwire.encoders.lm_layers import LMLayers
from latentwire.harness.errors import UserError
from latentwire.transforms.base import check_dials

ENCODERS: dict[str, type[Encoder]] = {"bottleneck": Bottleneck, "lm_layers": LMLayers, "byte": ByteEncoder}


def build_encoder(name: str, dials: dict[str, Any], width: int, unit: float, lm_config: dict[str, Any]) -> Encoder:
    """Build an encoder of random weights (torch's global generator); LMLayers then copies the LM's.

    Args:
        name: One of ENCODERS.
        dials: Of that encoder.
        width: Of the LM's embeddings.
        unit: Mean RMS of the LM's token embeddings.
        lm_config: The LM's config as plain values; LMLayers is built after it.

    Raises:
        UserError: An unknown encoder, a stray or missing dial, or one out of range.
    """
    if name not in ENCODERS:
        raise UserError(f"encoder={name}: unknown; use one of {', '.join(ENCODERS)}")
    check_dials(name, dials, ENCODERS[name])
    if name == "lm_layers":
        return LMLayers(width, unit, lm_config, **dials)
    return ENCODERS[name](width, unit, **dials)
