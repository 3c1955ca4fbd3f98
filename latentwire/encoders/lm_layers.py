"""encoder=lm_layers: a trainable copy of the LM's first layers, pooled to fewer positions."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from latentwire.encoders.base import Encoder, Passages, zeros
from latentwire.encoders.grouping import (
    bounds_around,
    choose_heads,
    group_bounds,
    information,
    pooling_matrix,
    word_begins,
)
from latentwire.harness.errors import UserError
from latentwire.transforms.base import require

GROUPS = ("equal", "words")


POOLS = ("mean", "query")


ASIDE = 2.0  # how much lower the gates of the lesser words start: 2 sigmoid(-2) = .24 of an embedding


class LMLayers(Encoder):
    """A trainable copy of the LM's first layers, attending in both directions, `ratio` positions pooled to one.

    A passage of T tokens becomes ceil(T / ratio) groups of neighbours. `equal`: of nearly equal size; a group starts as
    the mean of its tokens. `words`: each group has one head, chosen by whole words, those that say most by the
    frequencies of what it is trained on, and takes along the lesser tokens before it; it starts as its head and a
    little of these. Either way each token's embedding is gated, and what the layers say is added as the mean over the
    group: a frozen LM reads tokens well, sums of a few embeddings a little, and what the layers say in their own
    coordinates not at all.

    `pool=query` lets a group attend once more to the whole passage, as in ARC-Encoder (arXiv 2510.20535); there the
    last layer's own attention does it, here one of its own, which adds nothing at the start and knows no architecture.
    """

    information: Tensor  # (V,) of each token, nats; groups=words
    begins: Tensor  # (V,) whether a word begins with it; groups=words

    def __init__(
        self, width: int, unit: float, lm_config: dict[str, Any], *, layers: int, ratio: int, groups: str, pool: str
    ) -> None:
        super().__init__(width, unit)
        require(ratio >= 1, "ratio", ratio, "how many tokens share a position: must be at least 1")
        for dial, value, known in (("groups", groups, GROUPS), ("pool", pool, POOLS)):
            if value not in known:
                raise UserError(f"{dial}={value}: unknown; use one of {', '.join(known)}")
        there = int(lm_config["num_hidden_layers"])
        require(1 <= layers <= there, "layers", layers, f"must be between 1 and the LM's {there} layers")
        config = copy.deepcopy(lm_config)
        config["num_hidden_layers"] = layers
        if config.get("layer_types"):
            config["layer_types"] = config["layer_types"][:layers]
        self.ratio, self.shortest, self.z_width, self.reads_ids = ratio, ratio, width, groups == "words"
        loaded = AutoConfig.for_model(**config)
        self.body: PreTrainedModel = AutoModel.from_config(loaded, dtype=torch.float32)
        self.body.set_input_embeddings(nn.Identity())  # fed with embeddings; a copy of the table would only lie there
        self.gate, self.addition = zeros(nn.Linear(width, 1)), zeros(nn.Linear(width, width))
        self.pooling = QueryPooling(width) if pool == "query" else None
        if self.reads_ids:
            size = int(lm_config["vocab_size"])
            self.register_buffer("information", torch.zeros(size))
            self.register_buffer("begins", torch.ones(size, dtype=torch.bool))

    def copy_from(self, lm: PreTrainedModel) -> None:
        """Start as the LM's own first layers."""
        own = self.body.state_dict()
        theirs = lm.base_model.state_dict()
        self.body.load_state_dict({name: theirs[name].float() for name in own})

    def learn_words(self, texts: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> None:
        """Count how often each word comes in the texts to train on; `groups=words` chooses by it."""
        if self.reads_ids:
            self.begins.copy_(word_begins(tokenizer, len(self.begins)))
            self.information.copy_(information(texts, self.begins))

    def positions(self, tokens: int) -> int:
        """ceil(T / ratio).

        Raises:
            UserError: The passage has fewer tokens than share a position.
        """
        if self.ratio > tokens:
            raise UserError(
                f"ratio={self.ratio}: leaves nothing of a passage of {tokens} tokens; use an encoder of ratio={tokens} "
                "or less, or leave that passage out"
            )
        return math.ceil(tokens / self.ratio)

    def forward(self, passages: Passages) -> Tensor:
        """Run the layers, then pool."""
        mask = passages.mask  # (B, T)
        seen = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, torch.finfo(torch.float32).min)
        hidden = self.body(
            inputs_embeds=passages.embeds, attention_mask=seen[:, None, None].expand(-1, 1, mask.shape[1], -1),
            use_cache=False,
        ).last_hidden_state  # (B, T, D)  # fmt: skip
        heads, sums, means = self._pools(passages)  # (B, L, T) each
        gates = self.gate(hidden)  # (B, T, 1)
        if self.reads_ids:
            gates = gates - ASIDE * (1 - heads.sum(dim=1).unsqueeze(-1))
        gated, added = 2 * gates.sigmoid() * passages.embeds / self.unit, self.addition(hidden)  # (B, T, D)
        pooled = sums @ gated + means @ added  # (B, L, T) (B, T, D) -> (B, L, D)
        return pooled if self.pooling is None else self.pooling(pooled, gated + added, mask)

    def stands_for(self, passages: Passages) -> Tensor:
        """Return what each position is held against: the mean of its group, or its head."""
        return self._pools(passages)[0] @ passages.embeds

    def _pools(self, passages: Passages) -> tuple[Tensor, Tensor, Tensor]:
        """Return what a position stands for, whose gated embeddings and whose additions it takes: (B, L, T) each."""
        longest, device = passages.embeds.shape[1], passages.embeds.device
        counts = [self.positions(tokens) for tokens in passages.lengths]
        if not self.reads_ids:
            groups = [group_bounds(tokens, n) for tokens, n in zip(passages.lengths, counts, strict=True)]
            means = pooling_matrix(longest, groups).to(device)
            return means, means, means
        assert passages.ids is not None, "groups=words reads the tokens themselves"
        chosen = [
            choose_heads(self.information[ids].tolist(), self.begins[ids].tolist(), n)
            for ids, n in zip(passages.ids, counts, strict=True)
        ]
        heads = pooling_matrix(longest, [[(head, head + 1) for head in own] for own in chosen]).to(device)
        groups = [bounds_around(own, tokens) for own, tokens in zip(chosen, passages.lengths, strict=True)]
        means = pooling_matrix(longest, groups).to(device)
        return heads, means.sign(), means


class QueryPooling(nn.Module):
    """Means of groups that ask the whole passage once more; at the start what they hear weighs nothing.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        heads = next(heads for heads in (8, 4, 2, 1) if width % heads == 0)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        zeros(self.attention.out_proj)

    def forward(self, queries: Tensor, hidden: Tensor, mask: Tensor) -> Tensor:
        """q + attention(q, hidden): (B, L, D), (B, T, D), (B, T) -> (B, L, D)."""
        keys = self.norm(hidden)
        heard, _ = self.attention(self.norm(queries), keys, keys, key_padding_mask=~mask, need_weights=False)
        return queries + heard
