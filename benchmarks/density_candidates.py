"""Estimators of density that were compared before the default was chosen. Main entry: `CANDIDATES`.

Each takes unit rows (N, D) and returns a density (N,). All distances are in memory at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from kat.density.sketch import KernelSketch
from kat.density.whitening import whiten

K = 10
Candidate = Callable[[Tensor], Tensor]


def distances(y: Tensor) -> Tensor:
    """Return all distances between rows, (N, D) -> (N, N) float64, infinite between a row and itself."""
    return torch.cdist(y.double(), y.double()).fill_diagonal_(math.inf)


def knn(y: Tensor, k: int = K) -> Tensor:
    """Return 1 / mean distance to the k nearest."""
    return 1 / distances(y).topk(k, largest=False).values.mean(1).clamp(min=1e-4)


def kde(y: Tensor, bandwidths: float) -> Tensor:
    """Return sums of Gaussian kernels. The bandwidth is a multiple of the median distance to the 10th neighbour."""
    d = distances(y)
    h = bandwidths * d.topk(K, largest=False).values[:, -1].median()
    return 1 + (-(d**2) / (2 * h**2)).exp().sum(1)


def count(y: Tensor) -> Tensor:
    """Return the number of rows within the median distance to the 10th neighbour."""
    d = distances(y)
    return 1.0 + (d < d.topk(K, largest=False).values[:, -1].median()).sum(1).double()


def mutual_reachability(y: Tensor) -> Tensor:
    """Return 1 / mean over the k nearest of max(distance, both distances to the k-th neighbour), as in HDBSCAN."""
    near, ids = distances(y).topk(K, largest=False)
    core = near[:, -1]
    return 1 / torch.maximum(torch.maximum(near, core[ids]), core[:, None]).mean(1)


def shared_neighbours(y: Tensor, k: int = 30) -> Tensor:
    """Return how many of its 30 nearest a row shares with its 10 nearest; knn decides between equal numbers."""
    near, ids = distances(y).topk(k, largest=False)
    member = torch.zeros(len(y), len(y)).scatter_(1, ids, 1.0)
    shared = (member @ member.T).gather(1, ids)[:, :K].double().sum(1)
    return shared + 1 + 1e-3 / near.mean(1)


def self_tuning(y: Tensor, k: int = 7) -> Tensor:
    """Return sums of exp(-d^2 / s_i s_j), where s is the distance to the 7th neighbour (Zelnik-Manor and Perona)."""
    d = distances(y)
    scale = d.topk(k, largest=False).values[:, -1]
    sums: Tensor = 1 + (-(d**2) / (scale[:, None] * scale[None])).exp().sum(1)
    return sums


def local_dimension(y: Tensor, k: int = 20) -> Tensor:
    """Return r^-d with the distance r to the 10th neighbour and the local intrinsic dimension d, in standard units."""
    near = distances(y).topk(k, largest=False).values.clamp(min=1e-6)
    dimension = (-1 / (near / near[:, -1:]).log()[:, :-1].mean(1)).clamp(1, 50)
    log_density = -dimension * (near[:, K - 1] / near[:, K - 1].median()).log()
    return (log_density / log_density.std()).exp()


def sketch(y: Tensor) -> Tensor:
    """Return kernel sums from counts in hash tables."""
    counts = KernelSketch.empty(y.shape[1], seed=0)
    counts.add(y)
    return counts.sums(y)


def lengths_kept(x: Tensor) -> Tensor:
    """Whiten rows without bringing them to unit length, (N, D) -> (N, A)."""
    centred = x.double() - x.double().mean(0)
    variance, axes = torch.linalg.eigh(centred.T @ centred / len(x))
    variance = variance.clamp(min=0)
    y: Tensor = centred @ axes / (variance + variance[variance > 1e-9 * variance[-1]].median()).sqrt()
    return y.float()


def centred(x: Tensor) -> Tensor:
    """Centre rows and bring them to unit length."""
    return normalize(x - x.mean(0), dim=1)


def without_top(x: Tensor, components: int = 3) -> Tensor:
    """Centre rows, remove the three largest principal components, and bring the rows to unit length."""
    y = x.double() - x.double().mean(0)
    axes = torch.linalg.eigh(y.T @ y).eigenvectors[:, -components:]
    return normalize(y - y @ axes @ axes.T, dim=1).float()


def after(space: Callable[[Tensor], Tensor], estimator: Candidate) -> Candidate:
    """Return an estimator in another space."""
    return lambda x: estimator(space(x))


CANDIDATES: dict[str, Candidate] = {
    "kde_global (default of 0.3)": partial(kde, bandwidths=1.0),
    "kde, h = .4": partial(kde, bandwidths=0.4),
    "knn": knn,
    "centred, knn": after(centred, knn),
    "top 3 components removed, knn": after(without_top, knn),
    "whitened, lengths kept, knn": after(lengths_kept, knn),
    "**whitened_knn**": after(whiten, knn),
    "whitened, knn, k = 5": after(whiten, partial(knn, k=5)),
    "whitened, knn, k = 30": after(whiten, partial(knn, k=30)),
    "whitened, kde, h = .4": after(whiten, partial(kde, bandwidths=0.4)),
    "whitened, count in a radius": after(whiten, count),
    "whitened, mutual reachability": after(whiten, mutual_reachability),
    "whitened, shared neighbours": after(whiten, shared_neighbours),
    "whitened, self-tuning": after(whiten, self_tuning),
    "whitened, local dimension": after(whiten, local_dimension),
    "whitened_sketch": after(whiten, sketch),
}
