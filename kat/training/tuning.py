"""Choice of the trainable weights: the last blocks, LoRA adapters, or all. Main entry: `make_trainable()`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from latentwire.harness.errors import UserError
from latentwire.harness.random import generator_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel

METHODS = ("last_blocks", "lora", "all")
NORMS = ("norm", "ln_f", "final_layer_norm")  # names of the norm after the last block


@dataclass
class TuningSpec:
    """Settings of the trainable weights."""

    method: str  # last_blocks | lora | all
    blocks: int  # last_blocks: number of blocks, trained with the final norm
    rank: int  # lora: rank of the adapters
    alpha: int  # lora: the adapters are scaled by alpha / rank


def make_trainable(
    model: PreTrainedModel, spec: TuningSpec, seed: int, heads: Sequence[str] = ()
) -> tuple[Any, dict[str, nn.Parameter]]:
    """Freeze all weights of a model except those that the spec makes trainable.

    Args:
        model: A model of transformers.
        spec: Settings of the trainable weights.
        seed: Seed of the adapters' initial values.
        heads: Names of modules that are always trained, such as the new head of a reward model.

    Returns:
        The model (wrapped by peft for lora; `whole_model` undoes that), and its trainable parameters by name.

    Raises:
        UserError: The method is unknown, the model cannot be split into blocks, or a setting is out of range.
    """
    model.requires_grad_(False)
    if spec.method == "all":
        model.requires_grad_(True)
    elif spec.method == "last_blocks":
        for module in _last_blocks(model, spec.blocks):
            module.requires_grad_(True)
    elif spec.method == "lora":
        model = _with_lora(model, spec, seed, heads)
    else:
        raise UserError(f"tuning.method={spec.method}: unknown; use one of {', '.join(METHODS)}")
    for name in heads if spec.method != "lora" else ():
        model.get_submodule(name).requires_grad_(True)
    return model, {name: p for name, p in model.named_parameters() if p.requires_grad}


def whole_model(model: Any) -> PreTrainedModel:
    """Return the model with LoRA adapters merged into its weights, so that transformers saves and loads it."""
    whole: PreTrainedModel = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    return whole


def find_blocks(decoder: Any) -> tuple[str, nn.ModuleList] | None:
    """Return the list of a decoder's blocks with its attribute name; None if the decoder has no such list."""
    depth = decoder.config.get_text_config().num_hidden_layers
    return next(((n, m) for n, m in decoder.named_children() if isinstance(m, nn.ModuleList) and len(m) == depth), None)


def _last_blocks(model: PreTrainedModel, count: int) -> list[nn.Module]:
    """Return the last `count` blocks of a decoder and the norm after them."""
    found = find_blocks(model.base_model)
    if found is None:
        raise UserError(
            f"tuning.method=last_blocks: {type(model).__name__} has no plain stack of blocks; use lora or all"
        )
    depth = len(found[1])
    if not 1 <= count <= depth:
        raise UserError(f"tuning.blocks={count}: the model has {depth} blocks; choose from 1 to {depth}")
    norms = [module for name, module in model.base_model.named_children() if name in NORMS]
    return [*found[1][-count:], *norms]


def _with_lora(model: PreTrainedModel, spec: TuningSpec, seed: int, heads: Sequence[str]) -> Any:
    from peft import LoraConfig, get_peft_model

    if spec.rank < 1:
        raise UserError(f"tuning.rank={spec.rank}: must be at least 1")
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        modules_to_save=list(heads) or None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_for(seed, "lora").initial_seed())
        return get_peft_model(model, config)
