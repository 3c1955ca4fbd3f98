"""Estimators of density by name, and their settings. Main entries: `ESTIMATORS`, `register_estimator()`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kat.density.kernel import kernel_sums, kernel_sums_in_lists
from kat.density.nearest import Neighbours, check_neighbours, nearest
from kat.density.sketch import KernelCheck, KernelSketch
from kat.density.whitening import whiten
from latentwire.harness.errors import UserError
from latentwire.harness.registry import Registry

RESOLUTION = 1e-4  # smaller distances of unit float32 rows are rounding errors, so this is the minimum
CHECKED = 1000  # places whose kernel sums are computed exactly too
MOST_ERROR = 0.05  # largest accepted mean relative error of approximate kernel sums


@dataclass
class DensitySpec:
    """The settings of the density and the weights; conf/task/density.yaml has the same settings and defaults.

    Give either `gamma`, or `target_ess` (a share of N), for which gamma is solved; the other one is null. Above the
    quantile `cap` all weights are equal, and below the quantile `crowd_cap` too; 1 and 0 cap nothing.
    `kat.density.nearest.nearest` explains `index` and `min_recall`.

    >>> DensitySpec(k=5, gamma=1.0, target_ess=None).estimator
    'whitened_knn'
    """

    estimator: str = "whitened_knn"
    k: int = 10
    gamma: float | None = None
    target_ess: float | None = 0.4
    cap: float = 0.95
    index: str = "auto"
    min_recall: float = 0.95
    crowd_cap: float = 0.1


@dataclass(frozen=True)
class MeasuredPlaces:
    """Densities of M places, with details of the computation.

    Attributes:
        density: The density of each place, (M,) float64, above 0 and high where prompts are crowded.
        local_share: The share of each density that comes from the place and its k nearest neighbours, (M,).
        bandwidth: The median distance to the k-th neighbour.
        index: The search method, exact or ivf; sketch if nothing is searched.
        recall: The share of the true neighbours found on a sample, 1 for exact search.
        error: The mean relative error of approximate sums; 0 for exact sums, None for an estimator without sums.
        checked: Places at random, (Q,) int64, and their exact densities, (Q,); None if they were not computed.
        lists: The number of lists, and of those that were searched for each place; None without lists.
        neighbours: The neighbours of the whitened places; None if they were not searched.
    """

    density: Tensor
    local_share: Tensor
    bandwidth: float
    index: str
    recall: float
    error: float | None = None
    checked: tuple[Tensor, Tensor] | None = None
    lists: tuple[int, int] | None = None
    neighbours: Neighbours | None = None


# Takes places (M, D), each of unit length and different, their numbers of copies (M,), the settings and a seed.
Estimator = Callable[[Tensor, Tensor, DensitySpec, int], MeasuredPlaces]
ESTIMATORS: Registry[Estimator] = Registry("estimator", "estimator")


def register_estimator(name: str) -> Callable[[Estimator], Estimator]:
    """Return a decorator that registers a function as estimator=NAME.

    Args:
        name: Name of the estimator.

    Raises:
        UserError: The name is taken or not an identifier.
    """

    def register(estimator: Estimator) -> Estimator:
        ESTIMATORS.add(name, estimator)
        return estimator

    return register


@register_estimator("whitened_knn")
def whitened_knn(places: Tensor, copies: Tensor, spec: DensitySpec, seed: int) -> MeasuredPlaces:
    """Return copies / mean distance to the k nearest places, after a shrunk whitening (see `whiten`)."""
    check_neighbours(len(places), spec.k)
    found = nearest(whiten(places, seed), spec.k, index=spec.index, min_recall=spec.min_recall, seed=seed)
    return replace(_by_distance(found, copies), neighbours=found)


@register_estimator("knn")
def knn(places: Tensor, copies: Tensor, spec: DensitySpec, seed: int) -> MeasuredPlaces:
    """Return copies / mean distance to the k nearest places. Copies of a prompt do not hide its other neighbours."""
    return _by_distance(nearest(places, spec.k, index=spec.index, min_recall=spec.min_recall, seed=seed), copies)


def _by_distance(found: Neighbours, copies: Tensor) -> MeasuredPlaces:
    density = density_at(found.distances, copies)
    checked = None
    if found.sample is not None:
        sample, distances = found.sample
        checked = sample, density_at(distances, copies[sample])
    return MeasuredPlaces(
        density, torch.ones_like(density), _bandwidth(found), found.index, found.recall, checked=checked,
        lists=found.searched,
    )  # fmt: skip


def density_at(distances: Tensor, copies: Tensor) -> Tensor:
    """Return the densities of places from the distances to their neighbours, (M, K), and their copies, (M,): (M,)."""
    return copies / distances.double().mean(1).clamp(min=RESOLUTION)


@register_estimator("kde_global")
def kde_global(places: Tensor, copies: Tensor, spec: DensitySpec, seed: int) -> MeasuredPlaces:
    """Return the sum of copies_j exp(-d_j^2 / 2 h^2) over all places j, its own included.

    h is the median distance to the k-th neighbour. In many dimensions this is almost the distance between any two
    prompts, so the sum measures how typical a prompt is. If the neighbour search uses inverted lists, so do the sums:
    see `kernel_sums_in_lists`.
    """
    found = nearest(places, spec.k, index=spec.index, min_recall=spec.min_recall, seed=seed)
    bandwidth, error = _bandwidth(found), 0.0
    if found.lists is None:
        density = kernel_sums(places, copies, bandwidth)
    else:
        density, error = kernel_sums_in_lists(places, copies, bandwidth, found.lists, seed)
        if error > MOST_ERROR:
            raise UserError(
                f"index={spec.index}: the densities have a mean error of {error:.0%} on a sample, more than "
                f"{MOST_ERROR:.0%}; use sampler.index=exact, or sampler.estimator=knn"
            )
    kernels = (-found.distances.double().square() / (2 * bandwidth**2)).exp()  # (M, K)
    near = copies + (copies[found.ids] * kernels).sum(1)
    return MeasuredPlaces(density, (near / density).clamp(max=1), bandwidth, found.index, found.recall, error)


def _bandwidth(found: Neighbours) -> float:
    return max(float(found.distances[:, -1].median()), RESOLUTION)


@register_estimator("whitened_sketch")
def whitened_sketch(places: Tensor, copies: Tensor, spec: DensitySpec, seed: int) -> MeasuredPlaces:
    """Return kernel sums over all whitened places from counts in hash tables, in fixed memory, see `KernelSketch`.

    The kernel is as wide as 16 bits of a hash let it be, so in many dimensions most of a sum comes from the crowd at
    large. The local share shows how much.
    """
    check_neighbours(len(places), spec.k)
    rows = whiten(places, seed)
    sketch = KernelSketch.empty(rows.shape[1], seed)
    sketch.add(rows, copies)
    sample = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:CHECKED]
    check = KernelCheck(rows[sample], sample, spec.k)
    check.add(rows, torch.arange(len(rows)), copies)
    return sketched(sketch.sums(rows), check, copies[sample])


def sketched(density: Tensor, check: KernelCheck, copies: Tensor) -> MeasuredPlaces:
    """Return the densities of a sketch with their error on a sample.

    Args:
        density: The densities of all places, (M,).
        check: The exact sums of the sample, over all places.
        copies: The copies of the places of the sample, (Q,).
    """
    error = float((density[check.own] / check.sums - 1).abs().mean())
    share = torch.full_like(density, check.local_share(copies))
    return MeasuredPlaces(density, share, check.bandwidth(), "sketch", 1.0, error, checked=(check.own, check.sums))
