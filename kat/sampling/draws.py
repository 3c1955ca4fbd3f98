"""Draws of rows by weight, and how many to expect. Main entry: `draw()`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latentwire.harness.errors import UserError


def checked_weights(weights: Tensor | Sequence[float]) -> Tensor:
    """Return weights normalised to sum 1, (N,) float64.

    Args:
        weights: One number for each row, (N,).

    Raises:
        UserError: The weights are not one row of numbers, or are negative, not finite or all 0.
    """
    w = torch.as_tensor(weights, dtype=torch.float64).detach().cpu().clone()
    if w.ndim != 1 or len(w) == 0:
        raise UserError(f"weights of shape {tuple(w.shape)}: must be one number per prompt, (N,); make them again")
    bad = ~(w.isfinite() & (w >= 0))
    if bad.any():
        row = int(bad.nonzero()[0])
        raise UserError(f"weight {float(w[row])} of row {row}: must be finite and not negative; make the weights again")
    if w.sum() == 0:
        raise UserError("all weights are 0, so nothing can be drawn; make the weights again")
    return w / w.sum()


def draw(weights: Tensor, count: int, *, replacement: bool, generator: torch.Generator) -> Tensor:
    """Return rows drawn by weight, (count,) int64. N may exceed 2^24, the limit of torch.multinomial.

    With replacement, draws invert the cumulative weights. Without, they follow Efraimidis and Spirakis (2006): the
    `count` smallest of E_i / w_i with E_i exponential, in that order.

    Args:
        weights: The sampling weights, (N,) float64, sum 1. A row of weight 0 is never drawn.
        count: The number of draws; without replacement at most the number of positive weights.
        replacement: Whether a row may be drawn twice.
        generator: The source of the random numbers.
    """
    if replacement:
        cumulative = weights.cumsum(0)
        uniform = torch.rand(count, generator=generator, dtype=torch.float64) * cumulative[-1]
        last = int(weights.nonzero()[-1])
        return torch.searchsorted(cumulative, uniform, right=True).clamp(max=last)
    exponential = torch.empty(len(weights), dtype=torch.float64).exponential_(generator=generator)
    return (exponential / weights).topk(count, largest=False, sorted=True).indices


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
