"""The encoder `lm_layers`: a trainable copy of the LM's first layers, then pooling. Main entry: `LMLayers`."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from latentwire.encoders.base import Encoder, LMFacts, Passages, register_encoder, zeros
from latentwire.encoders.grouping import (
    FORMAT,
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
GATE_OFFSET = 2.0  # subtracted before the sigmoid for tokens that are not heads: their gates start at .24


@register_encoder("lm_layers", label="lm_layers{layers}_{groups}_{pool}{ratio}")
class LMLayers(Encoder):
    """A trainable copy of the LM's first layers with attention in both directions; `ratio` positions become one latent.

    A passage of T tokens becomes ceil(T / ratio) groups of neighbouring tokens:

    - `groups=equal`: groups of nearly equal size. A latent starts as the mean of its group.
    - `groups=words`: each group has one head and the tokens before it. Heads are whole words with the most information,
      by their frequency in the training passages. A latent starts as its head plus a small share of the other tokens.

    A latent has two parts: the sum (`words`) or mean (`equal`) of its group's gated token embeddings, and the mean of a
    linear map of the layers' outputs. The first part matters because a frozen LM processes tokens well, sums of a few
    tokens somewhat, and the layers' own outputs not at all.

    With `pool=query` each group attends once more to the whole passage, as in ARC-Encoder (arXiv 2510.20535). There the
    last layer's attention does this. Here a separate attention does, which works for any architecture and adds nothing
    at the start.

    Args:
        lm: What the encoder knows of the LM.
        layers: Number of layers to copy.
        ratio: Number of tokens for each latent.
        groups: One of GROUPS.
        pool: One of POOLS.

    Raises:
        UserError: A dial is out of range.
    """

    needs_lm_config = True
    information: Tensor  # (V,) information of each token in nats; only for groups=words
    begins: Tensor  # (V,) whether each token begins a word; only for groups=words

    def __init__(self, lm: LMFacts, *, layers: int, ratio: int, groups: str, pool: str) -> None:
        super().__init__(lm)
        require(ratio >= 1, "ratio", ratio, "is the number of tokens for each position: must be at least 1")
        for dial, value, known in (("groups", groups, GROUPS), ("pool", pool, POOLS)):
            if value not in known:
                raise UserError(f"{dial}={value}: unknown; use one of {', '.join(known)}")
        lm_layers = _size(lm.config, "num_hidden_layers")
        require(1 <= layers <= lm_layers, "layers", layers, f"must be between 1 and the LM's {lm_layers} layers")
        config = copy.deepcopy(dict(lm.config))
        config["num_hidden_layers"] = layers
        if isinstance(kinds := config.get("layer_types"), list):
            config["layer_types"] = kinds[:layers]
        self.ratio, self.shortest, self.z_width, self.reads_ids = ratio, ratio, lm.width, groups == "words"
        body_config = AutoConfig.for_model(str(config.pop("model_type")), **config)
        self.body: PreTrainedModel = AutoModel.from_config(body_config, dtype=torch.float32)
        self.body.set_input_embeddings(nn.Identity())  # inputs are embeddings, so the table is not needed
        self.gate, self.addition = zeros(nn.Linear(lm.width, 1)), zeros(nn.Linear(lm.width, lm.width))
        self.pooling = QueryPooling(lm.width) if pool == "query" else None
        if self.reads_ids:
            size = _size(lm.config, "vocab_size")
            self.register_buffer("information", torch.zeros(size))
            self.register_buffer("begins", torch.ones(size, dtype=torch.bool))

    def start_from(self, lm: PreTrainedModel) -> None:
        """Copy the weights of the LM's first layers."""
        names = self.body.state_dict().keys()
        lm_weights = lm.base_model.state_dict()
        self.body.load_state_dict({name: lm_weights[name].float() for name in names})

    def learn(self, texts: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> None:
        """Set the information of each token from word counts, for `groups=words`."""
        if self.reads_ids:
            self.begins.copy_(word_begins(tokenizer, len(self.begins)))
            self.information.copy_(information(texts, self.begins))

    @classmethod
    def versions(cls, dials: Mapping[str, object]) -> dict[str, int]:
        """Return the version of the grouping by words, for `groups=words`."""
        return {"words": FORMAT} if dials["groups"] == "words" else {}

    def positions(self, tokens: int) -> int:
        """Return ceil(T / ratio).

        Raises:
            UserError: The passage has fewer than `ratio` tokens.
        """
        if self.ratio > tokens:
            raise UserError(
                f"ratio={self.ratio}: more than the {tokens} tokens of a passage; use an encoder with ratio={tokens} "
                "or less, or leave that passage out"
            )
        return math.ceil(tokens / self.ratio)

    def forward(self, passages: Passages) -> Tensor:
        """Return the pooled outputs of the layers: (B, L, D)."""
        mask = passages.mask  # (B, T)
        additive_mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, torch.finfo(torch.float32).min)
        hidden = self.body(
            inputs_embeds=passages.embeds, use_cache=False,
            attention_mask=additive_mask[:, None, None].expand(-1, 1, mask.shape[1], -1),
        ).last_hidden_state  # (B, T, D)  # fmt: skip
        heads, sums, means = self._pooling_matrices(passages)  # (B, L, T) each
        gates = self.gate(hidden)  # (B, T, 1)
        if self.reads_ids:
            gates = gates - GATE_OFFSET * (1 - heads.sum(dim=1).unsqueeze(-1))
        gated, added = 2 * gates.sigmoid() * passages.embeds / self.mean_token_rms, self.addition(hidden)  # (B, T, D)
        pooled: Tensor = sums @ gated + means @ added  # (B, L, T) (B, T, D) -> (B, L, D)
        if self.pooling is not None:
            pooled = self.pooling(pooled, gated + added, mask)
        return pooled

    def stands_for(self, passages: Passages) -> Tensor:
        """Return the embedding that each latent represents, the mean of its group or its head: (B, L, D)."""
        return self._pooling_matrices(passages)[0] @ passages.embeds

    def _pooling_matrices(self, passages: Passages) -> tuple[Tensor, Tensor, Tensor]:
        """Return the weights of each token in each latent, (B, L, T) each.

        Returns:
            The weights in the embedding that the latent represents, of gated embeddings, and of the layers' outputs.
        """
        longest, device = passages.embeds.shape[1], passages.embeds.device
        counts = [self.positions(tokens) for tokens in passages.lengths]
        if not self.reads_ids:
            groups = [group_bounds(tokens, n) for tokens, n in zip(passages.lengths, counts, strict=True)]
            means = pooling_matrix(longest, groups).to(device)
            return means, means, means
        assert passages.ids is not None, "groups=words needs the token ids"
        chosen_heads = [
            choose_heads(self.information[ids].tolist(), self.begins[ids].tolist(), n)
            for ids, n in zip(passages.ids, counts, strict=True)
        ]
        heads = pooling_matrix(longest, [[(head, head + 1) for head in own] for own in chosen_heads]).to(device)
        groups = [bounds_around(own, tokens) for own, tokens in zip(chosen_heads, passages.lengths, strict=True)]
        means = pooling_matrix(longest, groups).to(device)
        return heads, means.sign(), means


def _size(config: Mapping[str, object], name: str) -> int:
    """Return a size in the LM's config."""
    size = config[name]
    if not isinstance(size, int):
        raise TypeError(f"{name}={size!r} of the LM's config is not a whole number")
    return size


class QueryPooling(nn.Module):
    """Lets latents attend once more to the whole passage; at the start this adds nothing.

    Args:
        width: Width of the embeddings, D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        heads = next(heads for heads in (8, 4, 2, 1) if width % heads == 0)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        zeros(self.attention.out_proj)

    def forward(self, queries: Tensor, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return queries + attention(queries, hidden).

        Args:
            queries: Pooled groups, (B, L, D).
            hidden: Outputs to attend to, (B, T, D).
            mask: True on real tokens, (B, T).

        Returns:
            (B, L, D).
        """
        keys = self.norm(hidden)
        attended, _ = self.attention(self.norm(queries), keys, keys, key_padding_mask=~mask, need_weights=False)
        result: Tensor = queries + attended
        return result
