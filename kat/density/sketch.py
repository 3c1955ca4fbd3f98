"""Kernel sums over any number of rows in fixed memory. Main entries: `KernelSketch`, `KernelCheck`.

Two passes over the rows: the first counts them, the second looks the counts up. Sketches of parts add up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TABLES, BITS = 256, 16  # 64 MiB of counts
HASHED = 512  # rows hashed at a time (8 MiB of products)
BLOCK = 8192  # rows compared at a time


@dataclass(frozen=True)
class KernelSketch:
    """Counts of rows in hash tables, from which kernel sums are estimated.

    A hash of a row is the signs of its products with `bits` random directions. Two rows at angle a have the same hash
    with probability (1 - a / pi)^bits, which is the kernel. The mean count, over the tables, of the buckets of a row is
    therefore an unbiased estimate of the sum of the kernel over all counted rows.

    Source: Coleman and Shrivastava (2020), "Sub-linear RACE Sketches for Approximate Kernel Density Estimation".

    Attributes:
        directions: The random directions, (D, tables * bits) float32.
        counts: The rows in each bucket, (tables, 2^bits) int32.
    """

    directions: Tensor
    counts: Tensor

    @classmethod
    def empty(cls, dim: int, seed: int, tables: int = TABLES, bits: int = BITS) -> KernelSketch:
        """Return a sketch without rows.

        Args:
            dim: The width D of the rows.
            seed: The seed of the directions. Only sketches with the same seed add up.
            tables: The number of hash tables; the variance falls as its inverse.
            bits: The bits of a hash; the more, the more local is the kernel.
        """
        directions = torch.randn(dim, tables * bits, generator=torch.Generator().manual_seed(seed))
        return cls(directions, torch.zeros(tables, 2**bits, dtype=torch.int32))

    @property
    def tables(self) -> int:
        """The number of hash tables."""
        return len(self.counts)

    def add(self, rows: Tensor, copies: Tensor | None = None) -> None:
        """Count rows.

        Args:
            rows: Rows, (N, D); their lengths do not matter.
            copies: How often each row counts, (N,); the default is once.
        """
        ones = torch.ones(len(rows)) if copies is None else copies
        for block, times in zip(rows.split(HASHED), ones.to(torch.int32).split(HASHED), strict=True):
            buckets = self._buckets(block)
            self.counts.view(-1).index_add_(0, buckets.reshape(-1), times.repeat_interleave(self.tables))

    def merge(self, other: KernelSketch) -> None:
        """Add the counts of a sketch with the same directions, of other rows."""
        assert torch.equal(self.directions, other.directions)
        self.counts.add_(other.counts)

    def sums(self, rows: Tensor) -> Tensor:
        """Return the estimated kernel sum at each row over all counted rows: (N, D) -> (N,) float64."""
        found = [self.counts.view(-1)[self._buckets(block)].double().mean(1) for block in rows.split(HASHED)]
        return torch.cat(found)

    def _buckets(self, rows: Tensor) -> Tensor:
        """Return the bucket of each row in each table, numbered through all tables: (N, D) -> (N, tables) int64."""
        tables, size = self.counts.shape
        bits = size.bit_length() - 1
        signs = (rows.float() @ self.directions > 0).view(len(rows), tables, bits)
        powers = torch.from_numpy(2 ** np.arange(bits)).float()
        return (signs.float() @ powers).long() + torch.arange(tables) * size


def angular_kernel(x: Tensor, y: Tensor, bits: int = BITS) -> Tensor:
    """Return (1 - a / pi)^bits for the angles a between unit rows: (N, D), (M, D) -> (N, M) float32."""
    return (1 - (x @ y.T).clamp(-1, 1).arccos() / math.pi) ** bits


class KernelCheck:
    """Kernel sums and nearest neighbours of a few rows, exactly, as rows come in.

    Args:
        rows: Unit rows, (Q, D).
        own: Their numbers, (Q,) int64.
        k: The number of neighbours.
    """

    def __init__(self, rows: Tensor, own: Tensor, k: int) -> None:
        self.rows, self.own = rows, own
        self.sums = torch.zeros(len(rows), dtype=torch.float64)
        self.near = torch.zeros(len(rows), k, dtype=torch.float64)  # largest terms of each sum, besides its own
        self.products = torch.full((len(rows), k), -math.inf)  # with the k nearest rows

    def add(self, rows: Tensor, numbers: Tensor, copies: Tensor) -> None:
        """Add rows (B, D), with their numbers (B,) and how often each counts (B,)."""
        k = self.near.shape[1]
        for block, ids, times in zip(*(each.split(BLOCK) for each in (rows, numbers, copies)), strict=True):
            is_self = self.own[:, None] == ids
            terms = angular_kernel(self.rows, block).double()
            terms[is_self] = 1
            terms *= times
            self.sums += terms.sum(1)
            terms[is_self] = 0
            self.near = torch.cat([self.near, terms], dim=1).topk(k).values
            products = (self.rows @ block.T).masked_fill_(is_self, -math.inf)
            self.products = torch.cat([self.products, products], dim=1).topk(k).values

    def merge(self, sums: Tensor, near: Tensor, products: Tensor) -> None:
        """Add what another check of the same rows has found among other rows."""
        k = self.near.shape[1]
        self.sums += sums
        self.near = torch.cat([self.near, near], dim=1).topk(k).values
        self.products = torch.cat([self.products, products], dim=1).topk(k).values

    def local_share(self, copies: Tensor) -> float:
        """Return the mean share of a sum that comes from the row, with its copies (Q,), and its k nearest rows."""
        return float(((copies + self.near.sum(1)) / self.sums).clamp(max=1).mean())

    def bandwidth(self) -> float:
        """Return the median distance to the k-th neighbour."""
        return float((2 - 2 * self.products[:, -1]).clamp(min=0).sqrt().median())
