"""Residual stream of a passage: lengths and turns of states. Main entries: `passage_states()`, `residual_profile()`.

A layer adds its output to the residual stream. A long input is hardly changed by what a layer adds, so its position's
state turns little. The cosine between the states before and after a layer shows how much it turns.
"""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import DynamicCache

from latentwire.lm.decoding import Prefix
from latentwire.lm.models import LanguageModel, layers_of
from latentwire.lm.vocabulary import rms


class ResidualProfile(TypedDict):
    """The states of one passage, for an LM of L layers."""

    rms: list[float]  # of the input and after each layer, L + 1: medians over positions
    turn: list[float]  # cosines between a position's states before and after each layer, L: means over positions
    from_input: list[float]  # cosines between a position's input and its state after each layer, L: means


def residual_profile(states: Tensor) -> ResidualProfile:
    """Return lengths and turns of the states of a passage.

    Args:
        states: The input and the state after each layer, (L + 1, T, D).
    """
    exact = states.double()
    return {
        "rms": rms(exact).median(dim=-1).values.tolist(),
        "turn": cosine_similarity(exact[:-1], exact[1:], dim=-1).mean(dim=-1).tolist(),
        "from_input": cosine_similarity(exact[:1].expand_as(exact[1:]), exact[1:], dim=-1).mean(dim=-1).tolist(),
    }


@torch.no_grad()
def passage_states(lm: LanguageModel, prefix: Prefix, before: Tensor, passage: Tensor) -> Tensor:
    """Return the residual stream of a passage after the shots: its input, and its state after each layer.

    The state after the last layer is not normalised, unlike the last hidden state of transformers.

    Args:
        lm: The frozen LM.
        prefix: Keys and values of the shots.
        before: Embeddings between the shots and the passage, (C, D).
        passage: Embeddings of the passage, (T, D).

    Returns:
        (L + 1, T, D) float32, on the LM's device.

    Raises:
        UserError: The LM has no list of its layers.
    """
    found: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
        hidden = output[0] if isinstance(output, tuple) else output  # (1, C + T, D)
        found.append(hidden[0, len(before) :].float())

    inputs = torch.cat([before, passage.to(before.dtype)])[None]
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(prefix.layers):
        cache.update(keys, values, layer)
    handles = [layer.register_forward_hook(keep) for layer in layers_of(lm)]
    try:
        lm.model.base_model(inputs_embeds=inputs, past_key_values=cache, use_cache=True)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack([inputs[0, len(before) :].float(), *found])
