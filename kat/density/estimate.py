"""Densities and sampling weights from embeddings; rare prompts weigh most. Main entry: `estimate()`."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from kat.density.estimators import ESTIMATORS, DensitySpec, MeasuredPlaces
from kat.density.nearest import INDEXES, Neighbours
from latentwire.harness.errors import UserError

__all__ = ["Density", "DensitySpec", "distinct_rows", "effective_sample_size", "estimate", "weigh"]

STEEPEST = 1e4  # largest gamma that the solver tries


@dataclass(frozen=True)
class Density:
    """Densities and sampling weights of N prompts, with details of the computation.

    `density` and `weights` are (N,) float64; the weights sum to 1. `bandwidth` is the median distance to the k-th
    neighbour, in the space of the estimator. `distinct` is the number of different embeddings, and `capped` the share
    of prompts at the cap. `local_share` is the mean share of a prompt's density that comes from itself and its k
    nearest neighbours. `error` is the mean relative error of approximate kernel sums on a sample of rows. It is 0 for
    exact sums and None for other estimators, where `recall` describes the error. `weights_error` is the total variation
    between these weights and the weights of an exact search, on the sample; None if it was not measured. `lists` is
    the number of lists, and the number of lists searched for each different row. `neighbours` are the neighbours of the
    whitened different rows, if the estimator searched them.
    """

    density: Tensor
    weights: Tensor
    gamma: float
    bandwidth: float
    index: str
    recall: float
    distinct: int
    capped: float
    local_share: float
    error: float | None
    weights_error: float | None = 0.0
    lists: tuple[int, int] | None = None
    neighbours: Neighbours | None = field(default=None, repr=False)


def estimate(emb: Tensor, spec: DensitySpec, seed: int = 0) -> Density:
    """Return the density and the sampling weight of every prompt.

    Equal embeddings count as one place with m copies. Neighbours are places, so copies of a prompt do not hide its
    other neighbours, and no distance is zero. The density of a place grows with m, so each copy weighs less.

    `kat.density.estimators` has the estimators.

    Args:
        emb: Unit rows, (N, D).
        spec: The settings of the density and the weights.
        seed: The seed of the approximate search, if it is used.

    Raises:
        UserError: A row is not finite or not of length 1, N <= k, or a setting is out of range. Or the rows vary in
            too few directions, or the error of the approximate search or sums is too large.

    >>> generator = torch.Generator().manual_seed(0)
    >>> crowd = torch.tensor([1.0, 0.0, 0.0]) + 0.1 * torch.randn(30, 3, generator=generator)
    >>> emb = torch.nn.functional.normalize(torch.cat([crowd, torch.tensor([[0.0, 1.0, 0.0]])]))
    >>> found = estimate(emb, DensitySpec(k=3))
    >>> bool(found.density[-1] == found.density.min()), bool(found.weights[-1] == found.weights.max())
    (True, True)
    """
    _check_rows(emb)
    check_spec(spec)
    places, place_of, copies = distinct_rows(emb)
    return density_of_places(ESTIMATORS[spec.estimator](places, copies, spec, seed), place_of, spec)


def density_of_places(found: MeasuredPlaces, place_of: Tensor, spec: DensitySpec) -> Density:
    """Return the densities and weights of prompts from the densities of their places.

    Args:
        found: The densities of M places.
        place_of: The place of each prompt, (N,) int64.
        spec: The settings of the weights.

    Raises:
        UserError: The target of the effective sample size cannot be reached.
    """
    density = found.density[place_of]
    gamma, weights, capped = weigh(density, spec.gamma, spec.target_ess, spec.cap, spec.crowd_cap)
    return Density(
        density,
        weights,
        gamma,
        found.bandwidth,
        found.index,
        found.recall,
        len(found.density),
        capped,
        float(found.local_share[place_of].mean()),
        found.error,
        _weights_error(found, density, gamma, spec),
        found.lists,
        found.neighbours,
    )


def distinct_rows(emb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the different rows of a matrix.

    Args:
        emb: Rows, (N, D).

    Returns:
        The M different rows (M, D), the index of each row among them (N,), and the number of copies (M,) float64.
    """
    rows = emb.detach().float().cpu().contiguous()
    place_by_hash: dict[bytes, int] = {}
    place_of = torch.tensor([place_by_hash.setdefault(row_hash(row), len(place_by_hash)) for row in rows.numpy()])
    count = len(place_by_hash)
    first_row = torch.full((count,), len(rows)).scatter_reduce(0, place_of, torch.arange(len(rows)), "amin")
    return rows[first_row], place_of, torch.bincount(place_of).double()


def row_hash(row: np.ndarray) -> bytes:
    """Return 16 bytes by which rows are compared, so that they need not be in memory twice."""
    return hashlib.blake2b(row.tobytes(), digest_size=16).digest()


def weigh(
    density: Tensor, gamma: float | None, target_ess: float | None, cap: float, crowd_cap: float = 0.0
) -> tuple[float, Tensor, float]:
    """Return gamma, the sampling weights density^-gamma, and the share of prompts at the cap.

    Both caps are order statistics of the densities, so they cap the same prompts for every gamma. ESS therefore never
    rises with gamma. The derivative of log ESS is 2 (E_gamma[r] - E_2gamma[r]) <= 0. Here r is the capped -log
    density, and E_gamma is the mean under the weights of gamma.

    Args:
        density: The densities, (N,), above 0.
        gamma: The exponent, or None to solve for `target_ess`.
        target_ess: The target of the effective sample size, as a share of N.
        cap: The quantile of the weights above which all are equal.
        crowd_cap: The quantile of the weights below which all are equal; 0 caps nothing.

    Returns:
        gamma, the capped weights of sum 1 (N,) float64, and the share of prompts at the cap.

    Raises:
        UserError: The target cannot be reached.
    """
    rarity = -density.double().log()  # (N,)
    lowest, highest = _bounds(rarity, cap, crowd_cap)
    rarity = rarity.clamp(lowest, highest)
    at_cap = float((rarity == highest).double().mean())
    if gamma is None:
        assert target_ess is not None
        gamma = _solve(rarity, target_ess, at_cap)
    return gamma, _powered(rarity, gamma), at_cap


def _weights_error(found: MeasuredPlaces, density: Tensor, gamma: float, spec: DensitySpec) -> float | None:
    if found.checked is None:
        return 0.0 if found.index == "exact" else None
    return weights_error(density, found.density, gamma, spec, *found.checked)


def weights_error(
    density: Tensor, of_places: Tensor, gamma: float, spec: DensitySpec, sample: Tensor, exact: Tensor
) -> float:
    """Return the total variation between the weights of a sample by its found and by its exact densities.

    Args:
        density: The densities of all prompts, (N,), which decide the caps.
        of_places: The densities of all places, (M,).
        gamma: The exponent.
        spec: The settings, with both caps.
        sample: Numbers of places, (Q,) int64.
        exact: Their exact densities, (Q,).
    """
    lowest, highest = _bounds(-density.double().log(), spec.cap, spec.crowd_cap)
    found, true = (
        _powered((-values.double().log()).clamp(lowest, highest), gamma) for values in (of_places[sample], exact)
    )
    return float((found - true).abs().sum() / 2)


def effective_sample_size(weights: Tensor) -> float:
    """Return (sum w)^2 / sum w^2: the equivalent number of equally weighted prompts (Kish)."""
    weights = weights.double()
    return float(weights.sum() ** 2 / (weights**2).sum())


def _bounds(rarity: Tensor, cap: float, crowd_cap: float) -> tuple[float, float]:
    """Return the rarities at both caps, the lower one first."""
    ordered = rarity.sort().values
    low, high = (float(ordered[max(math.ceil(quantile * len(rarity)) - 1, 0)]) for quantile in (crowd_cap, cap))
    return low, high


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
        if middle in (low, high):  # neighbouring numbers
            break
        low, high = (middle, high) if ess_share(middle) > target else (low, middle)
    return low


def check_spec(spec: DensitySpec) -> None:
    """Check the settings of a density.

    Raises:
        UserError: The estimator is unknown, or a setting is out of range.
    """
    if spec.estimator == "kde":
        raise UserError("estimator=kde: is now called kde_global; on real prompts it measures the distance to the mean")
    ESTIMATORS[spec.estimator]  # an unknown name is an error
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
    if spec.index not in INDEXES:
        raise UserError(f"index={spec.index}: unknown; use one of {', '.join(INDEXES)}")
    if spec.k < 1:
        raise UserError(f"k={spec.k}: must be at least 1")
    if not 0 <= spec.min_recall <= 1:
        raise UserError(f"min_recall={spec.min_recall}: must be a share, from 0 to 1")
    if not 0 <= spec.crowd_cap < spec.cap:
        raise UserError(f"crowd_cap={spec.crowd_cap}: must be a quantile, at least 0 (caps nothing) and below cap")


def _check_rows(emb: Tensor) -> None:
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
