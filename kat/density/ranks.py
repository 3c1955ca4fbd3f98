"""Rank correlation of two lists of numbers. Main entry: `rank_correlation()`."""

from __future__ import annotations

from torch import Tensor


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Return Spearman's correlation of two lists, (N,) and (N,). Equal numbers have their mean rank.

    It is 0 if all numbers of a list are equal.

    >>> import torch
    >>> rank_correlation(torch.tensor([1.0, 2.0, 30.0]), torch.tensor([3.0, 2.0, 1.0]))
    -1.0
    """
    x, y = (_ranks(values) for values in (a, b))
    x, y = x - x.mean(), y - y.mean()
    scale = float(x.norm() * y.norm())
    return round(float(x @ y) / scale, 12) if scale > 0 else 0.0


def _ranks(values: Tensor) -> Tensor:
    """Return the mean rank of each number, (N,) float64."""
    _, number, counts = values.double().unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks: Tensor = (last - (counts - 1) / 2)[number]
    return ranks
