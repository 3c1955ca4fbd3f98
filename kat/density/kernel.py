"""Sums of Gaussian kernels over all embeddings, exact or in inverted lists. Main entry: `kernel_sums()`."""

from __future__ import annotations

import torch
from torch import Tensor

from kat.density.nearest import Lists

BLOCK = 2048  # rows and columns of the kernel matrix in memory at a time (16 MiB)
FAR = 4096  # sampled rows that represent all rows outside the searched lists
ERROR_ROWS = 1000  # rows with exact kernel sums, to measure the error


def kernel_sums(x: Tensor, copies: Tensor, bandwidth: float) -> Tensor:
    """Return sum_j copies_j exp(-|x_i - x_j|^2 / 2 h^2) for each row i, (N,) float64. Each pair is computed once.

    Args:
        x: Unit rows, (N, D) float32.
        copies: The number of prompts at each row, (N,).
        bandwidth: h, in the units of x.
    """
    sums = torch.zeros(len(x), dtype=torch.float64)
    blocks = list(range(0, len(x), BLOCK))
    for i in blocks:
        for j in blocks[i // BLOCK :]:
            kernel = gaussian_kernel(x[i : i + BLOCK], x[j : j + BLOCK], bandwidth)
            if i == j:
                kernel.fill_diagonal_(1)
            sums[i : i + BLOCK] += (kernel @ copies[j : j + BLOCK].float()).double()
            if j > i:
                sums[j : j + BLOCK] += (copies[i : i + BLOCK].float() @ kernel).double()
    return sums


def kernel_sums_in_lists(x: Tensor, copies: Tensor, bandwidth: float, lists: Lists, seed: int) -> tuple[Tensor, float]:
    """Return an approximation of `kernel_sums` in time proportional to N, and its relative error.

    Rows in the searched lists are summed exactly. All other rows are far and have small kernels. They are represented
    by up to FAR random rows, scaled to their number, which makes the sum unbiased.

    Args:
        x: Unit rows, (N, D) float32.
        copies: The number of prompts at each row, (N,).
        bandwidth: h, in the units of x.
        lists: The inverted lists of the neighbour search.
        seed: The seed of the random rows.

    Returns:
        The sums, (N,) float64, and their mean relative error on a sample of rows.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(x), generator=generator)[:FAR]
    counts = copies.float()
    sums = torch.zeros(len(x), dtype=torch.float64)
    searched = torch.empty(len(x), dtype=torch.bool)
    for queries, others in lists:
        searched.fill_(False)[others] = True
        far = drawn[~searched[drawn]]
        scale = (copies.sum() - copies[others].sum()) / copies[far].sum().clamp(min=1)
        for rows in torch.split(queries, BLOCK // 4):
            kernel = gaussian_kernel(x[rows], x[others], bandwidth)
            kernel[rows[:, None] == others] = 1
            far_sums = gaussian_kernel(x[rows], x[far], bandwidth) @ counts[far]
            sums[rows] = (kernel @ counts[others]).double() + scale * far_sums.double()
    sample = torch.randperm(len(x), generator=generator)[:ERROR_ROWS]
    exact = torch.zeros(len(sample), dtype=torch.float64)
    for columns in torch.split(torch.arange(len(x)), BLOCK):
        kernel = gaussian_kernel(x[sample], x[columns], bandwidth)
        kernel[sample[:, None] == columns] = 1
        exact += (kernel @ counts[columns]).double()
    return sums, float((sums[sample] / exact - 1).abs().mean())


def gaussian_kernel(x: Tensor, y: Tensor, bandwidth: float) -> Tensor:
    """Return exp(-|x_i - y_j|^2 / 2 h^2) for unit rows x (N, D) and y (M, D): (N, M) float32."""
    # For unit rows |x - y|^2 / 2 = 1 - <x, y>. The clamp keeps rounding errors from making a kernel larger than 1.
    return (x @ y.T).sub_(1).clamp_(max=0).div_(bandwidth**2).exp_()
