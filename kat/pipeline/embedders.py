"""The embedder that a config chooses, and the prompts that it cannot embed. Main entry: `chosen_embedder()`."""

from __future__ import annotations

import torch
from omegaconf import DictConfig

from kat.embedding.registry import EmbedderInputs, EmbedderSpec
from latentwire.harness.errors import UserError
from latentwire.harness.precision import choose_dtype
from latentwire.harness.progress import log
from latentwire.harness.typed_config import plain_values, typed
from latentwire.lm.spec import ModelSpec

BATCH_TOKENS_ON_CPU = 8192  # the fastest in our measurements of embedding


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


def require_embeddable(total: int, too_long: int, empty: int, max_tokens: int) -> None:
    """Warn about prompts that are too long for an embedder, and check the rest.

    Args:
        total: Number of all prompts.
        too_long: Number of prompts that have more tokens than the embedder reads.
        empty: Number of prompts without a token.
        max_tokens: Length of the longest text that the embedder reads.

    Raises:
        UserError: A prompt has no tokens, or no prompt fits.
    """
    if too_long:
        log(
            f"warning: {too_long} of {total} prompts have more than the {max_tokens} tokens "
            "that the embedder reads; they are left out, not cut, and listed as too_long"
        )
    if empty:
        raise UserError(f"{empty} prompts have no tokens for this tokenizer; remove them from the prompts file")
    if too_long == total:
        raise UserError(f"none of the {total} prompts fits into the embedder's {max_tokens} "
                        "tokens; choose a model with a longer context")  # fmt: skip
