"""The encoders by name. Main entry: `build_encoder()`.

    passage (T tokens) -> encoder -> z (L, Z) -> adapter -> (L, D)

A sender would transmit z; the adapter runs on the LM's side. `Encoder.positions` returns L for T tokens.
"""

from __future__ import annotations

from typing import Any

from latentwire.encoders.base import Encoder
from latentwire.encoders.bottleneck import Bottleneck
from latentwire.encoders.byte import ByteEncoder
from latentwire.encoders.lm_layers import LMLayers
from latentwire.harness.errors import UserError
from latentwire.harness.registry import check_dials

ENCODERS: dict[str, type[Encoder]] = {"bottleneck": Bottleneck, "lm_layers": LMLayers, "byte": ByteEncoder}


def build_encoder(
    name: str, dials: dict[str, Any], width: int, mean_token_rms: float, lm_config: dict[str, Any]
) -> Encoder:
    """Build an encoder with random weights from torch's global generator.

    The caller copies the LM's weights into an LMLayers with `copy_from`.

    Args:
        name: Name of the encoder, a key of ENCODERS.
        dials: Its dials.
        width: Width of the LM's embeddings, D.
        mean_token_rms: Mean RMS of the LM's token embeddings.
        lm_config: The LM's config as plain values, for LMLayers.

    Raises:
        UserError: The encoder is unknown, or a dial is unknown, missing or out of range.
    """
    if name not in ENCODERS:
        raise UserError(f"encoder={name}: unknown; use one of {', '.join(ENCODERS)}")
    check_dials(name, dials, ENCODERS[name])
    if name == "lm_layers":
        return LMLayers(width, mean_token_rms, lm_config, **dials)
    return ENCODERS[name](width, mean_token_rms, **dials)
