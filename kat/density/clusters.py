"""Clusters of embeddings by seeded k-means. Main entry: `cluster()`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import faiss
import numpy as np
import torch
from torch import Tensor

from latentwire.harness.errors import UserError

ITERATIONS = 25
RESTARTS = 3


@dataclass(frozen=True)
class Clusters:
    """Clusters of N prompts.

    `labels` are the cluster numbers, (N,) int64; cluster 0 is the largest. `centroids` are unit rows, (C, D).
    """

    labels: Tensor
    centroids: Tensor


def cluster(emb: Tensor, number: int | None, seed: int) -> Clusters:
    """Return clusters of prompts by spherical k-means, the best of three starts. Empty clusters are left out.

    Args:
        emb: Unit rows, (N, D).
        number: The number of clusters; the default is the square root of N / 2, a rule of thumb.
        seed: The seed of the starting centroids.

    Raises:
        UserError: `number` is not a whole number from 1 to N.
    """
    rows = np.ascontiguousarray(emb.detach().cpu().numpy(), dtype=np.float32)
    count = max(1, round(math.sqrt(len(rows) / 2))) if number is None else number
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= len(rows):
        raise UserError(f"clusters={count}: must be a whole number from 1 to the number of prompts, {len(rows)}")
    kmeans = faiss.Kmeans(
        rows.shape[1],
        count,
        niter=ITERATIONS,
        nredo=RESTARTS,
        seed=seed,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=1000,
    )
    kmeans.train(rows)
    nearest = torch.from_numpy(kmeans.index.search(rows, 1)[1][:, 0])
    sizes = torch.bincount(nearest, minlength=count)
    order = sizes.argsort(descending=True, stable=True)
    order = order[sizes[order] > 0]
    rank = torch.empty(count, dtype=torch.int64).scatter(0, order, torch.arange(len(order)))
    return Clusters(rank[nearest], torch.from_numpy(kmeans.centroids)[order])


def closest_to_centroid(emb: Tensor, clusters: Clusters, count: int) -> list[list[int]]:
    """Return, for each cluster, the row numbers of the `count` prompts nearest to its centroid, nearest first."""
    cosine = (emb.float() * clusters.centroids[clusters.labels]).sum(1)
    chosen = []
    for number in range(len(clusters.centroids)):
        rows = (clusters.labels == number).nonzero()[:, 0]
        chosen.append(rows[cosine[rows].argsort(descending=True, stable=True)[:count]].tolist())
    return chosen
