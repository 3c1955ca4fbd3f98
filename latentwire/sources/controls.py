"""Controls for a trained encoder: `Cut` and `Averaged` with the same number of positions, and `Empty`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentwire.encoders.grouping import group_means
from latentwire.lm.vocabulary import Vocabulary
from latentwire.sources.base import Source, register_source
from latentwire.transforms.base import require


@register_source("cut", label="cut{ratio}", unlabelled=("positions",))
class Cut(Source):
    """Control: the first tokens of the passage, ceil(T / ratio) of them, or `positions` if that is given."""

    passage_only = True

    def __init__(
        self, vocabulary: Vocabulary, generator: torch.Generator, *, ratio: float, positions: int | None
    ) -> None:
        super().__init__(vocabulary, generator)
        require(ratio >= 1 and math.isfinite(ratio), "ratio", ratio, "tokens for each position: must be 1 or more")
        require(positions is None or positions >= 1, "positions", positions or 0, "must be at least 1")
        self.ratio, self.max_positions = ratio, positions

    def positions(self, tokens: int) -> int:
        """Return the number of tokens kept out of `tokens`."""
        return math.ceil(tokens / self.ratio) if self.max_positions is None else min(tokens, self.max_positions)

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the first positions of x: (T, D) -> (L, D)."""
        return x[: self.positions(len(x))]


@register_source("averaged", label="averaged{ratio}", unlabelled=("positions",))
class Averaged(Cut):
    """Control: means of neighbouring tokens, without training; as many positions as `Cut` keeps tokens.

    The tokens are split into groups of nearly equal size.
    """

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the means of the groups: (T, D) -> (L, D)."""
        return group_means(x, self.positions(len(x)))


@register_source("empty", label="empty")
class Empty(Source):
    """Control: no passage."""

    passage_only = True

    def positions(self, tokens: int) -> int:
        """Return 0."""
        return 0

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return no positions: (T, D) -> (0, D)."""
        return x[:0]
