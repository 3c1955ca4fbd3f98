"""The base of all encoders, the batch of passages that they read, and the adapter behind them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latentwire.encoders.grouping import (
    group_bounds,
    pooling_matrix,
)
from latentwire.harness.errors import UserError
from latentwire.transforms.base import require


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
            zeros(last)
            nn.init.eye_(zeros(self.line).weight)

    def forward(self, z: Tensor) -> Tensor:
        """LayerNorm(W z + MLP(z)): (..., Z) -> (..., D)."""
        y: Tensor = self.norm(self.line(z) + self.mlp(z))
        return y


def zeros(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def sinusoids(length: int, width: int) -> Tensor:
    """Return the positions of Vaswani et al. (2017), (length, width): they need no longest text."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = torch.arange(length)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
