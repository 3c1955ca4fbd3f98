"""The embedder that a config chooses. Main entry: `chosen_embedder()`."""

from __future__ import annotations

import torch
from omegaconf import DictConfig

from kat.embedding.registry import EmbedderInputs, EmbedderSpec
from latentwire.harness.errors import UserError
from latentwire.harness.precision import choose_dtype
from latentwire.harness.typed_config import plain_values, typed
from latentwire.lm.spec import ModelSpec


def chosen_embedder(cfg: DictConfig, device: torch.device) -> EmbedderSpec:
    """Return the embedder under `embedder` in a config, without loading it.

    Raises:
        UserError: The embedder is unknown, or a setting is unknown, missing or of another type.
    """
    settings = plain_values(cfg.embedder)
    if "name" not in settings:
        raise UserError("embedder.name: missing; choose an embedder with embedder=NAME")
    name = str(settings.pop("name"))
    return EmbedderSpec.of(name, settings, EmbedderInputs(typed(ModelSpec, cfg.model, "model."), device,
                                                          choose_dtype(cfg.dtype, device)))  # fmt: skip
