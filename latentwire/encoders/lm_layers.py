"""The encoders `lm_layers` and `lm_attention`: a trainable copy of the LM's first layers, then pooling.

Main entries: `LMLayers` and `LMAttention`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from latentwire.encoders.base import LMFacts, Passages, register_encoder
from latentwire.encoders.grouping import pooling_matrix
from latentwire.encoders.pooled import POOLS, PooledEncoder, config_size
from latentwire.harness.errors import UserError
from latentwire.transforms.base import require

HALVING = "halving"


@register_encoder("lm_layers", label="lm_layers{layers}_{groups}_{pool}{ratio}", unlabelled=("markers",))
class LMLayers(PooledEncoder):
    """A trainable copy of the LM's first layers with attention in both directions, pooled to fewer positions.

    With `pool=halving`, each of the last log2(ratio) layers works on means of two neighbouring positions. So the layers
    themselves pool. ARC-Encoder (arXiv 2510.20535) averages the queries of its last layers in this way.

    Args:
        lm: What the encoder knows of the LM.
        layers: Number of layers to copy.
        ratio: Number of tokens for each latent.
        groups: One of `pooled.GROUPS`.
        pool: One of `pools`.
        markers: Number of learned vectors at the end, which are among the positions.

    Raises:
        UserError: A dial is out of range.
    """

    pools = (*POOLS, HALVING)

    def __init__(self, lm: LMFacts, *, layers: int, ratio: int, groups: str, pool: str, markers: int = 0) -> None:
        super().__init__(lm, ratio, groups, pool, markers)
        known = config_size(lm.config, "num_hidden_layers")
        require(1 <= layers <= known, "layers", layers, f"must be between 1 and the LM's {known} layers")
        if pool != HALVING:
            self.body = first_layers(lm.config, layers)
            return
        if groups != "equal":
            raise UserError(f"groups={groups}: pool=halving makes groups of equal size; use groups=equal")
        require(not markers, "markers", markers, "cannot be used with pool=halving: use 0")
        # A model for each layer, as any of the last ones may halve.
        self.bodies = nn.ModuleList(first_layers(lm.config, 1, first=layer) for layer in range(layers))
        for model in self.models():
            layer_list(model, "pool=halving; use pool=mean")
        for inner in self.models()[:-1]:
            inner.norm = nn.Identity()
        self._require_halves(ratio)

    def start_from(self, lm: PreTrainedModel) -> None:
        """Copy the weights of the LM's first layers."""
        for first, model in enumerate(self.models()):
            copy_weights(lm, model, first)

    def copied(self) -> set[str]:
        """Return the names of the parameters of the copied layers."""
        return {name for name, _ in self.named_parameters() if name.startswith(("body.", "bodies."))}

    def models(self) -> list[PreTrainedModel]:
        """Return the copied layers: one model, or one for each layer with `pool=halving`."""
        return [cast(PreTrainedModel, model) for model in (self.bodies if self.pool == HALVING else [self.body])]

    def positions(self, tokens: int) -> int:
        """Return ceil(T / ratio).

        Raises:
            UserError: The passage is too short, or the layers cannot halve to this ratio.
        """
        if self.pool == HALVING:
            self._require_halves(self.ratio)
        return super().positions(tokens)

    def equal_groups(self, tokens: int) -> list[tuple[int, int]]:
        """Return the groups of a passage: with `pool=halving` the tokens whose positions the layers have pooled."""
        if self.pool != HALVING:
            return super().equal_groups(tokens)
        return [(start, min(start + self.ratio, tokens)) for start in range(0, tokens, self.ratio)]

    def states(self, passages: Passages) -> Tensor:
        """Return the outputs of the layers, (B, T, D); (B, L, D) with `pool=halving`."""
        if self.pool == HALVING:
            return self._halved(passages)
        return run_both_ways(self.body, passages.embeds, passages.mask)

    def _halved(self, passages: Passages) -> Tensor:
        """Return the outputs of the layers, of which the last log2(ratio) halve the positions: (B, L, D)."""
        hidden, lengths, stride = passages.embeds, passages.lengths, 1
        for layer, model in enumerate(self.models()):
            if layer >= len(self.bodies) - (self.ratio.bit_length() - 1):
                pairs = [[(a, min(a + 2, length)) for a in range(0, length, 2)] for length in lengths]
                hidden = pooling_matrix(hidden.shape[1], pairs).to(hidden) @ hidden
                lengths, stride = [len(own) for own in pairs], 2 * stride
            mask = (
                torch.arange(hidden.shape[1], device=hidden.device)
                < torch.tensor(lengths, device=hidden.device)[:, None]
            )
            hidden = run_both_ways(model, hidden, mask, stride)
        return hidden

    def _require_halves(self, ratio: int) -> None:
        require(ratio.bit_count() == 1, "ratio", ratio, "must be a power of 2 with pool=halving")
        most = 2 ** len(self.bodies)
        require(
            ratio <= most, "ratio", ratio, f"{len(self.bodies)} layers can halve to {most} at most; use more layers"
        )


@register_encoder("lm_attention", label="lm_attention{layers}_{groups}_{pool}{ratio}", unlabelled=("markers",))
class LMAttention(LMLayers):
    """A trainable copy of the attention of the LM's first layers; their MLPs, most of a layer's weights, are left out.

    AOC (arXiv 2501.06730) compresses prompts with such an encoder. It takes the same arguments as `LMLayers`.
    """

    def __init__(self, lm: LMFacts, *, layers: int, ratio: int, groups: str, pool: str, markers: int = 0) -> None:
        super().__init__(lm, layers=layers, ratio=ratio, groups=groups, pool=pool, markers=markers)
        for model in self.models():
            for layer in layer_list(model, "encoder=lm_attention; use encoder=lm_layers"):
                if not isinstance(getattr(layer, "mlp", None), nn.Module):
                    raise UserError(
                        f"encoder=lm_attention: layers of {lm.config['model_type']} have no `mlp` to leave out; use "
                        "encoder=lm_layers"
                    )
                layer.mlp = _Nothing()


class _Nothing(nn.Module):
    """Adds nothing to the residual stream."""

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros: (..., D) -> (..., D)."""
        return torch.zeros_like(x)


def first_layers(config: Mapping[str, object], layers: int, first: int = 0) -> PreTrainedModel:
    """Return a model of some layers of an LM, with random weights and without token embeddings.

    Args:
        config: Config of the LM's text model.
        layers: Number of layers.
        first: First of the layers.
    """
    own = copy.deepcopy(dict(config))
    own["num_hidden_layers"] = layers
    if isinstance(kinds := own.get("layer_types"), list):
        own["layer_types"] = kinds[first : first + layers]
    model: PreTrainedModel = AutoModel.from_config(
        AutoConfig.for_model(str(own.pop("model_type")), **own), dtype=torch.float32
    )
    model.set_input_embeddings(nn.Identity())  # inputs are embeddings, so the table is not needed
    return model


def layer_list(model: PreTrainedModel, use: str) -> nn.ModuleList:
    """Return the layers of a model.

    Args:
        model: The model.
        use: What needs the layers, and what to use instead, for the message.

    Raises:
        UserError: The model does not keep them in `layers`.
    """
    found = getattr(model, "layers", None)
    if not isinstance(found, nn.ModuleList):
        raise UserError(f"{type(model).__name__}: has no list `layers`, which is needed for {use}")
    return found


def copy_weights(lm: PreTrainedModel, model: PreTrainedModel, first: int = 0) -> None:
    """Copy the weights of an LM's layers, from its layer `first` on, to a model of `first_layers()`."""
    source = lm.base_model.state_dict()
    weights = {}
    for name in model.state_dict():
        parts = name.split(".")
        if parts[0] == "layers":
            parts[1] = str(int(parts[1]) + first)
        weights[name] = source[".".join(parts)].float()
    model.load_state_dict(weights)


def run_both_ways(model: PreTrainedModel, embeds: Tensor, mask: Tensor, stride: int = 1) -> Tensor:
    """Return a model's last states with attention in both directions.

    Args:
        model: The model.
        embeds: Inputs, (B, T, D).
        mask: True on inputs that are not padding, (B, T).
        stride: Number of tokens for each input; input i has the position i * stride.

    Returns:
        The states, (B, T, D).
    """
    padding = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, torch.finfo(torch.float32).min)
    length = mask.shape[1]
    hidden: Tensor = model(
        inputs_embeds=embeds, use_cache=False, attention_mask=padding[:, None, None].expand(-1, 1, length, -1),
        position_ids=stride * torch.arange(length, device=mask.device)[None],
    ).last_hidden_state  # fmt: skip
    return hidden
