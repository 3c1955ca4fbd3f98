"""Controls of a trained encoder at equal positions: cut, averaged, empty."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentwire.encoders.grouping import group_means
from latentwire.lm.vocabulary import Vocabulary
from latentwire.sources.base import Source
from latentwire.transforms.base import require


class Cut(Source):
    """Control: the passage's first tokens, ceil(T / ratio) of them, or `positions` where that is given."""

    passage_only = True

    def __init__(
        self, vocabulary: Vocabulary, generator: torch.Generator, *, ratio: float, positions: int | None
    ) -> None:
        super().__init__(vocabulary, generator)
        require(ratio >= 1 and math.isfinite(ratio), "ratio", ratio, "tokens for each position: must be 1 or more")
        require(positions is None or positions >= 1, "positions", positions or 0, "must be at least 1")
        self.ratio, self.at_most = ratio, positions

    def positions(self, tokens: int) -> int:
        """How many are left of so many."""
        return math.ceil(tokens / self.ratio) if self.at_most is None else min(tokens, self.at_most)

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The beginning of x."""
        return x[: self.positions(len(x))]


class Averaged(Cut):
    """Control: the means of groups of neighbouring tokens of nearly equal size, not trained; as many as Cut keeps."""

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(T, D) -> (L, D)."""
        return group_means(x, self.positions(len(x)))


class Empty(Source):
    """Control: no passage."""

    passage_only = True

    def positions(self, tokens: int) -> int:
        """None."""
        return 0

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(T, D) -> (0, D)."""
        return x[:0]
