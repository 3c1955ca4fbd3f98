"""Encoders of a passage: text or its token embeddings -> latents z, and the adapter from z to the LM's width.

    passage (T tokens) -> encoder -> z (L, Z) -> adapter -> (L, D)

z is what would travel; the adapter stands on the LM's side. Each encoder says how many positions L it makes of T.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from latentwire.encoders.grouping import (
    bounds_around,
    choose_heads,
    group_bounds,
    information,
    pooling_matrix,
    word_begins,
)
from latentwire.harness.errors import UserError
from latentwire.transforms.base import check_dials, require

BYTES = 256
GROUPS = ("equal", "words")
POOLS = ("mean", "query")
ASIDE = 2.0  # how much lower the gates of the lesser words start: 2 sigmoid(-2) = .24 of an embedding


@dataclass(frozen=True)
class Passages:
    """A batch of passages, as the LM's own tokens and as text."""

    texts: list[str]
    lengths: list[int]  # tokens of each
    embeds: Tensor  # (B, T, D) token embeddings, zero beyond the length
    ids: list[list[int]] | None = None  # the tokens themselves, for an encoder that asks for them

    @property
    def mask(self) -> Tensor:
        """True on real tokens, (B, T)."""
        return torch.arange(self.embeds.shape[1], device=self.embeds.device) < torch.tensor(
            self.lengths, device=self.embeds.device
        ).unsqueeze(-1)


def make_passages(texts: list[str], embeds: list[Tensor], ids: list[list[int]] | None = None) -> Passages:
    """Put passages side by side, padded on the right.

    Args:
        texts: The passages.
        embeds: Their token embeddings, (T_i, D) each.
        ids: Their tokens, where the encoder asks for them (`Encoder.reads_ids`).

    Raises:
        UserError: A passage without a token.
    """
    lengths = [len(rows) for rows in embeds]
    if not all(lengths):
        raise UserError("an empty passage: there is nothing to encode; leave it out, or ask without a passage")
    padded = nn.utils.rnn.pad_sequence([rows.float() for rows in embeds], batch_first=True)
    return Passages(texts, lengths, padded, ids)


class Encoder(nn.Module, ABC):
    """What all encoders share.

    Args:
        width: Of the LM's embeddings, D.
        unit: Mean RMS of the LM's token embeddings; inputs are divided by it, whatever model they are of.
    """

    z_width: int
    reads_ids = False  # whether it asks for the tokens themselves
    shortest = 1  # tokens that a passage must have

    def __init__(self, width: int, unit: float) -> None:
        super().__init__()
        self.width, self.unit = width, unit

    def positions(self, tokens: int) -> int:
        """Return how many latents a passage of so many tokens becomes."""
        return tokens

    def stands_for(self, passages: Passages) -> Tensor:
        """Return what each position stands for, an average of token embeddings: (B, L, D), 0 beyond a passage's own."""
        groups = [group_bounds(tokens, self.positions(tokens)) for tokens in passages.lengths]
        averages: Tensor = pooling_matrix(passages.embeds.shape[1], groups).to(passages.embeds) @ passages.embeds
        return averages

    @abstractmethod
    def forward(self, passages: Passages) -> Tensor:
        """Encode passages: (B, L, Z), L being the positions of the longest; beyond a passage's own, anything."""


class Bottleneck(Encoder):
    """Each token embedding through d_z dimensions, position for position."""

    def __init__(self, width: int, unit: float, *, d_z: int) -> None:
        super().__init__(width, unit)
        require(d_z >= 1, "d_z", d_z, "must be at least 1")
        self.z_width = d_z
        self.down = nn.Linear(width, d_z)

    def forward(self, passages: Passages) -> Tensor:
        """W x + b."""
        z: Tensor = self.down(passages.embeds / self.unit)  # (B, T, Z)
        return z


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
        self.gate, self.addition = _zeros(nn.Linear(width, 1)), _zeros(nn.Linear(width, width))
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
        _zeros(self.attention.out_proj)

    def forward(self, queries: Tensor, hidden: Tensor, mask: Tensor) -> Tensor:
        """q + attention(q, hidden): (B, L, D), (B, T, D), (B, T) -> (B, L, D)."""
        keys = self.norm(hidden)
        heard, _ = self.attention(self.norm(queries), keys, keys, key_padding_mask=~mask, need_weights=False)
        return queries + heard


class ByteEncoder(Encoder):
    """A small transformer over the bytes of the text, asked by `latent_len` learned queries."""

    def __init__(self, width: int, unit: float, *, latent_len: int, byte_width: int, byte_layers: int) -> None:
        super().__init__(width, unit)
        require(latent_len >= 1, "latent_len", latent_len, "must be at least 1")
        require(byte_layers >= 1, "byte_layers", byte_layers, "must be at least 1")
        require(byte_width >= 8 and byte_width % 8 == 0, "byte_width", byte_width, "must be a multiple of 8")
        self.latent_len, self.z_width = latent_len, byte_width
        heads = max(1, byte_width // 64)
        options: dict[str, Any] = {"dim_feedforward": 4 * byte_width, "dropout": 0.0, "activation": "gelu",
                                   "batch_first": True, "norm_first": True}  # fmt: skip
        self.bytes = nn.Embedding(BYTES, byte_width)
        self.queries = nn.Parameter(torch.randn(latent_len, byte_width) / math.sqrt(byte_width))
        self.body = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(byte_width, heads, **options), byte_layers, enable_nested_tensor=False
        )
        self.head = nn.TransformerDecoder(nn.TransformerDecoderLayer(byte_width, heads, **options), byte_layers)

    def positions(self, tokens: int) -> int:
        """latent_len, whatever the text."""
        return self.latent_len

    def forward(self, passages: Passages) -> Tensor:
        """Read the bytes, then let the queries ask."""
        device = self.queries.device
        raw = [torch.tensor(list(text.encode()), device=device) for text in passages.texts]
        ids = nn.utils.rnn.pad_sequence(raw, batch_first=True)  # (B, N)
        lengths = torch.tensor([len(row) for row in raw], device=device)
        padded = torch.arange(ids.shape[1], device=device) >= lengths[:, None]
        embeds = self.bytes(ids) + sinusoids(ids.shape[1], self.z_width).to(device)
        memory = self.body(embeds, src_key_padding_mask=padded)
        z: Tensor = self.head(self.queries.expand(len(raw), -1, -1), memory, memory_key_padding_mask=padded)
        return z  # (B, latent_len, Z)


class Adapter(nn.Module):
    """From z to the LM's width: a straight line and a small MLP, added, then a LayerNorm, as encoders end in one.

    The LayerNorm gives every position unit RMS; the LM's tokens are far shorter, which is what transforms repair. A z
    as wide as the LM's embeddings is handed on as it is at the start.
    """

    def __init__(self, z_width: int, width: int, hidden: int) -> None:
        super().__init__()
        require(hidden >= 1, "adapter_hidden", hidden, "must be at least 1")
        self.line = nn.Linear(z_width, width)
        first, last = nn.Linear(z_width, hidden), nn.Linear(hidden, width)
        self.mlp = nn.Sequential(first, nn.GELU(), last)
        self.norm = nn.LayerNorm(width)
        if z_width == width:
            _zeros(last)
            nn.init.eye_(_zeros(self.line).weight)

    def forward(self, z: Tensor) -> Tensor:
        """LayerNorm(W z + MLP(z)): (..., Z) -> (..., D)."""
        y: Tensor = self.norm(self.line(z) + self.mlp(z))
        return y


def _zeros(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def sinusoids(length: int, width: int) -> Tensor:
    """Return the positions of Vaswani et al. (2017), (length, width): they need no longest text."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = torch.arange(length)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


ENCODERS: dict[str, type[Encoder]] = {"bottleneck": Bottleneck, "lm_layers": LMLayers, "byte": ByteEncoder}


def build_encoder(name: str, dials: dict[str, Any], width: int, unit: float, lm_config: dict[str, Any]) -> Encoder:
    """Build an encoder of random weights (torch's global generator); LMLayers then copies the LM's.

    Args:
        name: One of ENCODERS.
        dials: Of that encoder.
        width: Of the LM's embeddings.
        unit: Mean RMS of the LM's token embeddings.
        lm_config: The LM's config as plain values; LMLayers is built after it.

    Raises:
        UserError: An unknown encoder, a stray or missing dial, or one out of range.
    """
    if name not in ENCODERS:
        raise UserError(f"encoder={name}: unknown; use one of {', '.join(ENCODERS)}")
    check_dials(name, dials, ENCODERS[name])
    if name == "lm_layers":
        return LMLayers(width, unit, lm_config, **dials)
    return ENCODERS[name](width, unit, **dials)
