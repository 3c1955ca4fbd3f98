"""Attention over a prefix that all rows share, without a copy of it for each row.

Attention over [prefix, own columns] is split in two and put together again by the log-sum-exps of the parts, as
in FlashAttention's own blocks and in Hydragen (Juravsky et al. 2024, arXiv 2402.05099): for the part over the
prefix, the queries of all rows form one matrix. A transformers model runs it as the attention implementation
"shared_prefix" when its forward is given `shared_prefix`, the keys and values of each layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

NAME = "shared_prefix"
PrefixLayers = tuple[tuple[Tensor, Tensor], ...]  # keys and values of each layer, (1, Hkv, P, d)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> tuple[Tensor, Tensor]:
    """Return attention and the log-sum-exp of its scores.

    Args:
        query: (B, H, T, d).
        key: (B, H, S, d).
        value: (B, H, S, d).
        mask: Added to the scores, broadcastable to (B, H, T, S), or None.
        scaling: Multiplies the scores first.

    Returns:
        (B, H, T, d) in the query's dtype, and (B, H, T) in float32.
    """
    if query.device.type == "cpu":
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=mask, scale=scaling
        )
        return output, lse
    scores = (query @ key.transpose(-1, -2)).float() * scaling
    if mask is not None:
        scores = scores + mask
    lse = scores.logsumexp(dim=-1)
    return (scores - lse[..., None]).exp().to(value.dtype) @ value, lse


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    shared_prefix: PrefixLayers = (),
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend to the shared prefix, seen whole by every query, and to each row's own columns under their mask.

    Args:
        module: The attention layer; its `layer_idx` says which layer of the prefix it sees.
        query: (B, Hq, T, d), the heads of one key head beside one another.
        key: (B, Hkv, S, d), own columns only.
        value: (B, Hkv, S, d).
        attention_mask: Added to the scores, (B, 1, T, S), or None: causal.
        scaling: Multiplies the scores.
        shared_prefix: Keys and values of the prefix, layer by layer; empty for no prefix.
        kwargs: What else transformers hands down; none of it changes what is computed here.

    Returns:
        (B, T, Hq, d), and no attention weights.
    """
    batch, heads, length, width = query.shape
    groups = heads // key.shape[1]
    if attention_mask is None:
        seen = query.new_ones(1, 1, length, key.shape[2], dtype=torch.bool).tril(key.shape[2] - length)
        attention_mask = additive(seen, query.dtype)
    # (B, Hq, T, d) -> (B, Hkv, G * T, d): the heads of a group ask one key head, which need not be repeated
    own, own_lse = attend(
        query.unflatten(1, (-1, groups)).flatten(2, 3), key, value, attention_mask.repeat(1, 1, groups, 1), scaling
    )
    own, own_lse = own.reshape(query.shape), own_lse.reshape(query.shape[:-1])
    if shared_prefix:
        prefix_key, prefix_value = shared_prefix[module.layer_idx]  # type: ignore[index]
        # (B, Hkv * G, T, d) -> (1, Hkv, G * B * T, d): all queries of a key head against one prefix
        folded = query.unflatten(1, (-1, groups)).transpose(0, 1).reshape(1, -1, groups * batch * length, width)
        output, lse = attend(folded, prefix_key, prefix_value, None, scaling)
        output = output.reshape(-1, batch, groups, length, width).transpose(0, 1).flatten(1, 2)
        lse = lse.reshape(-1, batch, groups, length).transpose(0, 1).flatten(1, 2)
        share = torch.sigmoid(lse - own_lse)[..., None].to(own.dtype)  # of the prefix in the softmax
        own = torch.lerp(own, output, share)
    return own.transpose(1, 2).contiguous(), None


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask to add to the scores: 0 where `seen` is true, the lowest number elsewhere."""
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)


def _additive_mask(*args: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Tensor | None:
    """Make the mask of a forward once for all its layers."""
    seen = sdpa_mask(*args, dtype=dtype, **kwargs)
    return None if seen is None else additive(seen, dtype)


AttentionInterface.register(NAME, shared_prefix_attention)
AttentionMaskInterface.register(NAME, _additive_mask)
