"""The encoders by name. Main entry: `build_encoder()`.

    passage (T tokens) -> encoder -> z (L, Z) -> adapter -> (L, D)

A sender would transmit z; the adapter runs on the LM's side. `Encoder.positions` returns L for T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PreTrainedModel

from latentwire.encoders import bottleneck, byte, cut_text, lm_layers, lm_states  # noqa: F401 (they register encoders)
from latentwire.encoders.base import ENCODERS, Encoder, LMFacts
from latentwire.harness.errors import UserError
from latentwire.harness.registry import check_dials, dials_of
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
        UserError: The encoder is unknown, a dial is unknown, missing or out of range, or the encoder's `z_width` or
            `positions` is invalid.
    """
    encoder = ENCODERS[name]
    check_dials(name, dials, encoder)
    built = encoder(lm, **dials)
    width, given = getattr(built, "z_width", None), "".join(f" {dial}={value}" for dial, value in dials.items())
    if not isinstance(width, int) or width < 1:
        what = "has no z_width" if width is None else f"z_width={width} is not a width"
        raise UserError(f"encoder={name}{given}: {what}; set self.z_width in __init__ to the width of a latent")
    tokens = max(1, built.shortest)
    try:
        count = built.positions(tokens)
    except ArithmeticError as error:
        raise UserError(
            f"encoder={name}{given}: positions({tokens}) raises {type(error).__name__} ({error}); change the dials, or "
            "check them in __init__"
        ) from error
    if not isinstance(count, int) or count < 1:
        raise UserError(
            f"encoder={name}{given}: positions({tokens}) is {count}; it must return a whole number, at least 1"
        )
    return built


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
    known = dials_of(ENCODERS[name])
    chosen = {dial: value for dial, value in dials.items() if value != known[dial].default}  # new dials change nothing
    return {"name": name, "dials": chosen, "versions": ENCODERS[name].versions(dials)}


def latents_plugins(encoder: str, transform: str, transform_dials: Mapping[str, object]) -> dict[str, str]:
    """Return the digests of the plugins that define an encoder and the transform after it, for identities."""
    return {**ENCODERS.plugin_sources([encoder]), **transform_plugins(transform, transform_dials)}
