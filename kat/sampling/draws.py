"""Draws of rows by weight, and how many to expect. Main entries: `draw()`, `DrawWeights`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from latentwire.harness.errors import UserError

BLOCK = 1 << 20  # rows that a check looks at together


def checked_weights(weights: Tensor | Sequence[float]) -> Tensor:
    """Return weights normalised to sum 1, (N,) float64.

    Args:
        weights: One number for each row, (N,).

    Raises:
        UserError: The weights are not one row of numbers, or are negative, not finite or all 0.
    """
    w = torch.as_tensor(weights, dtype=torch.float64).detach().cpu().clone()
    require_valid_weights(w)
    return w.div_(w.sum())


def require_valid_weights(weights: Tensor) -> None:
    """Check that weights can be drawn by. No copy of them is made.

    Args:
        weights: One number for each row, (N,).

    Raises:
        UserError: The weights are not one row of numbers, or are negative, not finite or all 0.
    """
    if weights.ndim != 1 or len(weights) == 0:
        raise UserError(
            f"weights of shape {tuple(weights.shape)}: must be one number per prompt, (N,); make them again"
        )
    for start, block in _blocks(weights):
        if not bool((ok := block.isfinite() & (block >= 0)).all()):
            row = start + int((~ok).nonzero()[0])
            raise UserError(
                f"weight {float(weights[row])} of row {row}: must be finite and not negative; make the weights again"
            )
    if float(weights.sum()) == 0:
        raise UserError("all weights are 0, so nothing can be drawn; make the weights again")


def _blocks(weights: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the weights in blocks, each with the number of its first row."""
    for start in range(0, len(weights), BLOCK):
        yield start, weights[start : start + BLOCK]


class DrawWeights:
    """Sampling weights, and what repeated draws need of them, computed once.

    The only numbers of length N that it adds are the cumulative sums, so the weights may be mapped from a file. N may
    exceed 2^24, the limit of torch.multinomial.

    Attributes:
        values: The sampling weights, (N,) float64, sum 1. Do not change them.

    Args:
        values: The same.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def cumulative(self) -> Tensor:
        """The cumulative sums of the weights, (N,) float64."""
        return self.values.cumsum(0)

    @cached_property
    def last(self) -> int:
        """The last row of positive weight."""
        for start in range((len(self) - 1) // BLOCK * BLOCK, -1, -BLOCK):
            if len(rows := self.values[start : start + BLOCK].nonzero()):
                return start + int(rows[-1])
        raise AssertionError("checked weights have a positive one")

    @cached_property
    def positive(self) -> int:
        """The number of rows of positive weight."""
        return sum(int((block > 0).sum()) for _, block in _blocks(self.values))

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits of the sha256 of the weights."""
        return hashlib.sha256(self.values.contiguous().numpy().data).hexdigest()[:16]

    def are_equal(self) -> bool:
        """Return whether all positive weights are the same."""
        first = self.values[self.last]
        return all(bool(((block == first) | (block == 0)).all()) for _, block in _blocks(self.values))

    def draw(self, count: int, *, replacement: bool, generator: torch.Generator) -> Tensor:
        """Return rows drawn by weight, (count,) int64; see `draw`."""
        if replacement:
            uniform = torch.rand(count, generator=generator, dtype=torch.float64).mul_(self.cumulative[-1])
            return torch.searchsorted(self.cumulative, uniform, right=True).clamp_(max=self.last)
        exponential = torch.empty(len(self), dtype=torch.float64).exponential_(generator=generator)
        return exponential.div_(self.values).topk(count, largest=False, sorted=True).indices


def draw(weights: Tensor, count: int, *, replacement: bool, generator: torch.Generator) -> Tensor:
    """Return rows drawn by weight, (count,) int64. For repeated draws by the same weights use `DrawWeights`.

    With replacement, draws invert the cumulative weights. Without, they follow Efraimidis and Spirakis (2006): the
    `count` smallest of E_i / w_i with E_i exponential, in that order.

    Args:
        weights: The sampling weights, (N,) float64, sum 1. A row of weight 0 is never drawn.
        count: The number of draws; without replacement at most the number of positive weights.
        replacement: Whether a row may be drawn twice.
        generator: The source of the random numbers.
    """
    return DrawWeights(weights).draw(count, replacement=replacement, generator=generator)


def expected_draws(weights: Tensor, count: int, replacement: bool) -> Tensor:
    """Return the expected number of draws of each row, (N,) float64.

    Without replacement it is the limit for many rows: 1 - exp(-w_i t), with t chosen so that the sum is `count`.

    Args:
        weights: The sampling weights, (N,) float64, sum 1.
        count: The number of draws.
        replacement: Whether a row may be drawn twice.
    """
    if replacement or count == 0:
        return weights * count
    if count == int((weights > 0).sum()):
        return (weights > 0).double()
    low, high = 0.0, 1.0
    while float(-torch.expm1(-weights * high).sum()) < count:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        too_few = float(-torch.expm1(-weights * middle).sum()) < count
        low, high = (middle, high) if too_few else (low, middle)
    return -torch.expm1(-weights * high)
