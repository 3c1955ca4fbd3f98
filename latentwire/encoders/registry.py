"""The encoders by name. Main entry: `build_encoder()`.

    passage (T tokens) -> encoder -> z (L, Z) -> adapter -> (L, D)

A sender would transmit z; the adapter runs on the LM's side. `Encoder.positions` returns L for T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PreTrainedModel

from latentwire.encoders import bottleneck, byte, lm_layers  # noqa: F401 (they register encoders)
from latentwire.encoders.base import ENCODERS, Encoder, LMFacts
from latentwire.harness.registry import check_dials
from latentwire.harness.results import JsonObject
from latentwire.transforms.registry import transform_plugins

__all__ = ["ENCODERS", "build_encoder", "encoder_identity", "encoder_lm_config", "latents_plugins"]


def build_encoder(name: str, dials: Mapping[str, object], lm: LMFacts) -> Encoder:
    """Build an encoder with random weights from torch's global generator.

    Before training, the caller calls `Encoder.start_from` and `Encoder.learn`.

    Args:
        name: Name of the encoder.
        dials: Its dials.
        lm: What the encoder may know of the LM.

    Raises:
        UserError: The encoder is unknown, or a dial is unknown, missing or out of range.
    """
    encoder = ENCODERS[name]
    check_dials(name, dials, encoder)
    return encoder(lm, **dials)


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


def encoder_identity(name: str, dials: Mapping[str, object]) -> JsonObject:
    """Return what decides the architecture and the first weights of an encoder, for the identity of a run."""
    return {"name": name, "dials": dials, "versions": ENCODERS[name].versions(dials)}


def latents_plugins(encoder: str, transform: str, transform_dials: Mapping[str, object]) -> dict[str, str]:
    """Return the digests of the plugins that define an encoder and the transform after it, for identities."""
    return {**ENCODERS.plugin_sources([encoder]), **transform_plugins(transform, transform_dials)}
