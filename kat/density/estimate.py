"""Embeddings -> density (high = crowded) -> sampling weights (the rare prompt weighs most)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kat.density.nearest import Lists, nearest
from latentwire.harness.errors import UserError

ESTIMATORS = ("kde", "knn")
RESOLUTION = 1e-4  # distances of unit float32 rows below this are rounding: no density grows beyond its inverse
BLOCK = 2048  # rows and columns of the kernel matrix held at a time (16 MiB)
STEEPEST = 1e4  # of gamma, where one is solved for
FAR = 4096  # rows that stand for all those outside the searched lists
ERROR_ROWS = 1000  # rows whose kernels are summed exactly to measure the error
MOST_ERROR = 0.05  # mean relative error of approximate kernel sums that is still accepted


@dataclass
class DensitySpec:
    """How densities are estimated and turned into weights; the density part of the `sampler` node.

    `gamma` is given, or null with `target_ess` (a share of N) to solve for. `cap` is the quantile of the weights above
    which all weigh the same; 1 caps nothing. `index` and `min_recall` are those of `kat.density.nearest.nearest`.
    """

    estimator: str
    k: int
    gamma: float | None
    target_ess: float | None
    cap: float
    index: str
    min_recall: float


@dataclass(frozen=True)
class Density:
    """Densities and weights of N prompts, with what they were computed by.

    `density` and `weights` are (N,) float64, the weights of sum 1. `bandwidth` is the kernel's (the median distance to
    the k-th neighbour), for either estimator; `distinct` counts different embeddings; `capped` is the share of prompts
    at the cap; `error` is the mean relative error of kernel sums over lists on a sample of rows (0 for exact ones, None
    for knn, whose error `recall` tells).
    """

    density: Tensor
    weights: Tensor
    gamma: float
    bandwidth: float
    index: str
    recall: float
    distinct: int
    capped: float
    error: float | None


def estimate(emb: Tensor, spec: DensitySpec, seed: int = 0) -> Density:
    """Estimate the density of every prompt among the others and turn it into sampling weights.

    Exact duplicates count as one place with their number: neighbours are sought among different embeddings, so k
    copies of a prompt do not hide the k others, and no distance is zero. A place of m copies is m times as dense, and
    each of its copies weighs accordingly less.

    knn: m / mean distance to the k nearest places.

    kde: sum of m_j exp(-d_j^2 / 2 h^2) over all places j, its own included. This is a soft count of the prompts like
    this one. Its own place makes it at least 1, which bounds the weight of an outlier. Where the neighbours are sought
    in lists the kernels are, too: see `kernel_sums_in_lists`.

    Args:
        emb: Unit rows, (N, D).
        spec: Estimator and weighting.
        seed: Of the approximate search, where one is used.

    Raises:
        UserError: Rows that are not finite or not of unit length, N <= k, a setting out of its range, or an
            approximate search or sum that errs too much.
    """
    _check(emb, spec)
    places, place_of, copies = distinct_rows(emb)
    found = nearest(places, spec.k, index=spec.index, min_recall=spec.min_recall, seed=seed)
    bandwidth = max(float(found.distances[:, -1].median()), RESOLUTION)
    error: float | None = None
    if spec.estimator == "knn":
        density = copies / found.distances.double().mean(1).clamp(min=RESOLUTION)
    elif found.lists is None:
        density, error = kernel_sums(places, copies, bandwidth), 0.0
    else:
        density, error = kernel_sums_in_lists(places, copies, bandwidth, found.lists, seed)
        if error > MOST_ERROR:
            raise UserError(
                f"index={spec.index}: the densities are off by {error:.0%} on average on a sample, more than "
                f"{MOST_ERROR:.0%}; use sampler.index=exact, or estimator=knn"
            )
    density = density[place_of]
    gamma, weights, capped = weigh(density, spec.gamma, spec.target_ess, spec.cap)
    return Density(density, weights, gamma, bandwidth, found.index, found.recall, len(places), capped, error)


def distinct_rows(emb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the different rows (M, D), the number of each row's among them (N,), and their counts (M,) float64."""
    rows = emb.detach().float().cpu().contiguous()
    numbers: dict[bytes, int] = {}
    place_of = torch.tensor([numbers.setdefault(row.tobytes(), len(numbers)) for row in rows.numpy()])
    first = torch.full((len(numbers),), len(rows)).scatter_reduce(0, place_of, torch.arange(len(rows)), "amin")
    return rows[first], place_of, torch.bincount(place_of).double()


def kernel_sums(x: Tensor, copies: Tensor, bandwidth: float) -> Tensor:
    """Return sum_j copies_j exp(-|x_i - x_j|^2 / 2 h^2) for each row, (N,) float64; each pair is computed once.

    Args:
        x: Unit rows, (N, D) float32.
        copies: Number of prompts at each row, (N,).
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
    """Return what `kernel_sums` does, approximately, in a time that grows as N and not N^2, and its relative error.

    The rows of the lists searched for neighbours are summed exactly. The others have small kernels but are many: FAR
    rows drawn at random stand for all of them, weighted by their number, which is right on average.

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
        stands_for = (copies.sum() - copies[others].sum()) / copies[far].sum().clamp(min=1)
        for rows in queries.split(BLOCK // 4):
            kernel = gaussian_kernel(x[rows], x[others], bandwidth)
            kernel[rows[:, None] == others] = 1
            beyond = gaussian_kernel(x[rows], x[far], bandwidth) @ counts[far]
            sums[rows] = (kernel @ counts[others]).double() + stands_for * beyond.double()
    sample = torch.randperm(len(x), generator=generator)[:ERROR_ROWS]
    exact = torch.zeros(len(sample), dtype=torch.float64)
    for columns in torch.arange(len(x)).split(BLOCK):
        kernel = gaussian_kernel(x[sample], x[columns], bandwidth)
        kernel[sample[:, None] == columns] = 1
        exact += (kernel @ counts[columns]).double()
    return sums, float((sums[sample] / exact - 1).abs().mean())


def gaussian_kernel(x: Tensor, y: Tensor, bandwidth: float) -> Tensor:
    """Return exp(-|x_i - y_j|^2 / 2 h^2), (N, M) float32."""
    # For unit rows |x - y|^2 / 2 = 1 - <x, y>; rounding must not make a kernel larger than 1.
    return (x @ y.T).sub_(1).clamp_(max=0).div_(bandwidth**2).exp_()


def weigh(density: Tensor, gamma: float | None, target_ess: float | None, cap: float) -> tuple[float, Tensor, float]:
    """Return gamma, the weights density^-gamma, capped and of sum 1, and the share of prompts at the cap.

    The cap is a quantile of the densities themselves (an order statistic), so it caps the same prompts for every gamma
    and ESS falls steadily with gamma: log ESS has the derivative 2 (E_gamma - E_2gamma) of the capped -log density,
    which is never positive.

    Args:
        density: (N,), above 0.
        gamma: Exponent, or None to solve for `target_ess`.
        target_ess: Effective sample size wanted, as a share of N.
        cap: Quantile of the weights above which all weigh the same.

    Raises:
        UserError: The target cannot be reached.
    """
    rarity = -density.double().log()  # (N,)
    highest = rarity.sort().values[max(math.ceil(cap * len(rarity)) - 1, 0)]
    rarity = rarity.clamp(max=highest)
    at_cap = float((rarity == highest).double().mean())
    if gamma is None:
        assert target_ess is not None
        gamma = _solve(rarity, target_ess, at_cap)
    return gamma, _powered(rarity, gamma), at_cap


def effective_sample_size(weights: Tensor) -> float:
    """Return (sum w)^2 / sum w^2 (Kish): how many equally weighted prompts carry as much."""
    weights = weights.double()
    return float(weights.sum() ** 2 / (weights**2).sum())


def _powered(rarity: Tensor, gamma: float) -> Tensor:
    weights = (gamma * (rarity - rarity.max())).exp()
    return weights / weights.sum()


def _solve(rarity: Tensor, target: float, at_cap: float) -> float:
    """Bisect for the gamma whose ESS/N is the target; between 1 (gamma 0) and the share at the cap (infinity)."""
    if at_cap == 1 and target < 1:
        raise UserError(
            f"target_ess={target}: all prompts have the same density, so no gamma reaches it; give sampler.gamma=0, "
            "or look at the embeddings"
        )

    def reached(gamma: float) -> float:
        return effective_sample_size(_powered(rarity, gamma)) / len(rarity)

    if target < reached(STEEPEST):
        raise UserError(
            f"target_ess={target}: {at_cap:.3f} of the prompts weigh most whatever gamma is; choose a target above "
            "that, or a higher sampler.cap"
        )
    low, high = 0.0, STEEPEST
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) > target else (low, middle)
    return low


def _check(emb: Tensor, spec: DensitySpec) -> None:
    if spec.estimator not in ESTIMATORS:
        raise UserError(f"estimator={spec.estimator}: unknown; use one of {', '.join(ESTIMATORS)}")
    if (spec.gamma is None) == (spec.target_ess is None):
        raise UserError(
            f"gamma={spec.gamma} target_ess={spec.target_ess}: give one and leave the other null; gamma is solved for "
            "where target_ess is given"
        )
    if spec.gamma is not None and not 0 <= spec.gamma < math.inf:
        raise UserError(f"gamma={spec.gamma}: must be a number from 0; above 0 rare prompts weigh more")
    if spec.target_ess is not None and not 0 < spec.target_ess <= 1:
        raise UserError(f"target_ess={spec.target_ess}: is a share of the prompts, above 0 and at most 1")
    if not 0 < spec.cap <= 1:
        raise UserError(f"cap={spec.cap}: is a quantile of the weights, above 0 and at most 1 (1 caps nothing)")
    if emb.ndim != 2:
        raise UserError(f"embeddings of shape {tuple(emb.shape)}: expected (N, D)")
    lengths = emb.double().norm(dim=1)
    off = ~((lengths - 1).abs() < 1e-3)  # NaN is off too
    if off.any():
        row = int(off.nonzero()[0])
        raise UserError(
            f"row {row} of the embeddings has length {float(lengths[row]):.3g}: {int(off.sum())} of {len(emb)} rows "
            "are not finite or not of unit length; normalise them, and remove prompts without an embedding"
        )
