"""The encoders by name. Main entry: `build_encoder()`.

    passage (T tokens) -> encoder -> z (L, Z) -> adapter -> (L, D)

A sender would transmit z; the adapter runs on the LM's side. `Encoder.positions` returns L for T tokens.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from latentwire.encoders.base import Encoder, LMFacts
from latentwire.encoders.bottleneck import Bottleneck
from latentwire.encoders.byte import ByteEncoder
from latentwire.encoders.lm_layers import LMLayers
from latentwire.harness.errors import UserError
from latentwire.harness.registry import check_dials
from latentwire.harness.results import JsonObject

ENCODERS: dict[str, type[Encoder]] = {"bottleneck": Bottleneck, "lm_layers": LMLayers, "byte": ByteEncoder}


def build_encoder(name: str, dials: JsonObject, lm: LMFacts) -> Encoder:
    """Build an encoder with random weights from torch's global generator.

    Before training, the caller calls `Encoder.start_from` and `Encoder.learn`.

    Args:
        name: Name of the encoder, a key of ENCODERS.
        dials: Its dials.
        lm: What the encoder may know of the LM.

    Raises:
        UserError: The encoder is unknown, or a dial is unknown, missing or out of range.
    """
    if name not in ENCODERS:
        raise UserError(f"encoder={name}: unknown; use one of {', '.join(ENCODERS)}")
    check_dials(name, dials, ENCODERS[name])
    return ENCODERS[name](lm, **dials)


def encoder_lm_config(name: str, lm: PreTrainedModel) -> JsonObject:
    """Return the config of the LM's text model that `LMFacts` and the encoder's folder hold.

    Args:
        name: Name of the encoder.
        lm: The LM.

    Returns:
        The config, or {} if the encoder needs none.
    """
    if not ENCODERS[name].needs_lm_config:
        return {}
    config: JsonObject = lm.config.get_text_config().to_dict()
    return {key: value for key, value in config.items() if not key.startswith("_") and key != "dtype"}


def encoder_identity(name: str, dials: JsonObject) -> JsonObject:
    """Return what decides the architecture and the first weights of an encoder, for the identity of a run."""
    return {"name": name, "dials": dials, "versions": ENCODERS[name].versions(dials)}
