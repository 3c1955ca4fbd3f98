"""Densities and sampling weights from embeddings; rare prompts weigh most. Main entry: `estimate()`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kat.density.nearest import Lists, nearest
from latentwire.harness.errors import UserError

ESTIMATORS = ("kde", "knn")
RESOLUTION = 1e-4  # smaller distances of unit float32 rows are rounding errors, so this is the minimum
BLOCK = 2048  # rows and columns of the kernel matrix in memory at a time (16 MiB)
STEEPEST = 1e4  # largest gamma that the solver tries
FAR = 4096  # sampled rows that represent all rows outside the searched lists
ERROR_ROWS = 1000  # rows with exact kernel sums, to measure the error
MOST_ERROR = 0.05  # largest accepted mean relative error of approximate kernel sums


@dataclass
class DensitySpec:
    """The settings of the density and the weights; conf/task/density.yaml has the same settings and defaults.

    Give either `gamma`, or `target_ess` (a share of N), for which gamma is solved; the other one is null. Above the
    quantile `cap` all weights are equal; 1 caps nothing. `kat.density.nearest.nearest` explains `index` and
    `min_recall`.

    >>> DensitySpec(k=5, gamma=1.0, target_ess=None).estimator
    'kde'
    """

    estimator: str = "kde"
    k: int = 10
    gamma: float | None = None
    target_ess: float | None = 0.4
    cap: float = 0.95
    index: str = "auto"
    min_recall: float = 0.95


@dataclass(frozen=True)
class Density:
    """Densities and sampling weights of N prompts, with details of the computation.

    `density` and `weights` are (N,) float64; the weights sum to 1. `bandwidth` is the median distance to the k-th
    neighbour, for both estimators. `distinct` is the number of different embeddings, and `capped` the share of prompts
    at the cap. `error` is the mean relative error of approximate kernel sums on a sample of rows. It is 0 for exact
    sums and None for knn, where `recall` describes the error.
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
    """Return the density and the sampling weight of every prompt.

    Equal embeddings count as one place with m copies. Neighbours are places, so copies of a prompt do not hide its
    other neighbours, and no distance is zero. The density of a place grows with m, so each copy weighs less.

    knn: m / mean distance to the k nearest places.

    kde: sum of m_j exp(-d_j^2 / 2 h^2) over all places j, including the prompt's own. This is a soft count of similar
    prompts. It is at least 1, which bounds the weight of an outlier. If the neighbour search uses inverted lists, so
    do the sums: see `kernel_sums_in_lists`.

    Args:
        emb: Unit rows, (N, D).
        spec: The settings of the density and the weights.
        seed: The seed of the approximate search, if it is used.

    Raises:
        UserError: A row is not finite or not of length 1, N <= k, or a setting is out of range. Or the error of the
            approximate search or sums is too large.

    >>> generator = torch.Generator().manual_seed(0)
    >>> crowd = torch.tensor([1.0, 0.0, 0.0]) + 0.1 * torch.randn(30, 3, generator=generator)
    >>> emb = torch.nn.functional.normalize(torch.cat([crowd, torch.tensor([[0.0, 1.0, 0.0]])]))
    >>> found = estimate(emb, DensitySpec(k=3))
    >>> bool(found.density[-1] == found.density.min()), bool(found.weights[-1] == found.weights.max())
    (True, True)
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
                f"index={spec.index}: the densities have a mean error of {error:.0%} on a sample, more than "
                f"{MOST_ERROR:.0%}; use sampler.index=exact, or estimator=knn"
            )
    density = density[place_of]
    gamma, weights, capped = weigh(density, spec.gamma, spec.target_ess, spec.cap)
    return Density(density, weights, gamma, bandwidth, found.index, found.recall, len(places), capped, error)


def distinct_rows(emb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the different rows of a matrix.

    Args:
        emb: Rows, (N, D).

    Returns:
        The M different rows (M, D), the index of each row among them (N,), and the number of copies (M,) float64.
    """
    rows = emb.detach().float().cpu().contiguous()
    place_by_bytes: dict[bytes, int] = {}
    place_of = torch.tensor([place_by_bytes.setdefault(row.tobytes(), len(place_by_bytes)) for row in rows.numpy()])
    count = len(place_by_bytes)
    first_row = torch.full((count,), len(rows)).scatter_reduce(0, place_of, torch.arange(len(rows)), "amin")
    return rows[first_row], place_of, torch.bincount(place_of).double()


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


def weigh(density: Tensor, gamma: float | None, target_ess: float | None, cap: float) -> tuple[float, Tensor, float]:
    """Return gamma, the sampling weights density^-gamma, and the share of prompts at the cap.

    The cap is an order statistic of the densities, so it caps the same prompts for every gamma. ESS therefore never
    rises with gamma. The derivative of log ESS is 2 (E_gamma[r] - E_2gamma[r]) <= 0. Here r is the capped -log
    density, and E_gamma is the mean under the weights of gamma.

    Args:
        density: The densities, (N,), above 0.
        gamma: The exponent, or None to solve for `target_ess`.
        target_ess: The target of the effective sample size, as a share of N.
        cap: The quantile above which all weights are equal.

    Returns:
        gamma, the capped weights of sum 1 (N,) float64, and the share of prompts at the cap.

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
    """Return (sum w)^2 / sum w^2: the equivalent number of equally weighted prompts (Kish)."""
    weights = weights.double()
    return float(weights.sum() ** 2 / (weights**2).sum())


def _powered(rarity: Tensor, gamma: float) -> Tensor:
    weights = (gamma * (rarity - rarity.max())).exp()
    return weights / weights.sum()


def _solve(rarity: Tensor, target: float, at_cap: float) -> float:
    """Return the gamma with ESS/N equal to the target, by bisection.

    ESS/N falls from 1 at gamma 0 to the share at the cap for infinite gamma.
    """
    if at_cap == 1 and target < 1:
        raise UserError(
            f"target_ess={target}: all prompts have the same density, so no gamma reaches it; set sampler.gamma=0, "
            "or check the embeddings"
        )

    def ess_share(gamma: float) -> float:
        return effective_sample_size(_powered(rarity, gamma)) / len(rarity)

    if target < ess_share(STEEPEST):
        raise UserError(
            f"target_ess={target}: {at_cap:.3f} of the prompts share the largest weight for every gamma; choose a "
            "larger target, or a higher sampler.cap"
        )
    low, high = 0.0, STEEPEST
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if ess_share(middle) > target else (low, middle)
    return low


def _check(emb: Tensor, spec: DensitySpec) -> None:
    if spec.estimator not in ESTIMATORS:
        raise UserError(f"estimator={spec.estimator}: unknown; use one of {', '.join(ESTIMATORS)}")
    if (spec.gamma is None) == (spec.target_ess is None):
        raise UserError(
            f"gamma={spec.gamma} target_ess={spec.target_ess}: give one and set the other to null; with target_ess, "
            "gamma is computed"
        )
    if spec.gamma is not None and not 0 <= spec.gamma < math.inf:
        raise UserError(f"gamma={spec.gamma}: must be finite and at least 0; above 0 rare prompts weigh more")
    if spec.target_ess is not None and not 0 < spec.target_ess <= 1:
        raise UserError(f"target_ess={spec.target_ess}: must be a share of the prompts, above 0 and at most 1")
    if not 0 < spec.cap <= 1:
        raise UserError(f"cap={spec.cap}: must be a quantile, above 0 and at most 1 (1 caps nothing)")
    if emb.ndim != 2:
        raise UserError(f"embeddings of shape {tuple(emb.shape)}: expected (N, D)")
    lengths = emb.double().norm(dim=1)
    wrong = ~((lengths - 1).abs() < 1e-3)  # includes NaN
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise UserError(
            f"row {row} of the embeddings has length {float(lengths[row]):.3g}: {int(wrong.sum())} of {len(emb)} rows "
            "are not finite or not of unit length; normalise them, and remove prompts without an embedding"
        )
