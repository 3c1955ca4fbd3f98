"""Embeddings -> clusters, by seeded k-means."""

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
    """Cluster number of each prompt (N,) int64, largest cluster first, and the unit centroids (C, D)."""

    labels: Tensor
    centroids: Tensor


def cluster(emb: Tensor, number: int | None, seed: int) -> Clusters:
    """Group prompts by spherical k-means, the best of three starts; clusters that stay empty are left out.

    Args:
        emb: Unit rows, (N, D).
        number: Clusters wanted; by default the square root of N / 2, a rule of thumb.
        seed: Of the starting centroids.

    Raises:
        UserError: No whole number, more clusters than prompts, or fewer than one.
    """
    rows = np.ascontiguousarray(emb.detach().cpu().numpy(), dtype=np.float32)
    wanted = max(1, round(math.sqrt(len(rows) / 2))) if number is None else number
    if not isinstance(wanted, int) or isinstance(wanted, bool) or not 1 <= wanted <= len(rows):
        raise UserError(f"clusters={wanted}: must be a whole number from 1 to the number of prompts, {len(rows)}")
    kmeans = faiss.Kmeans(
        rows.shape[1],
        wanted,
        niter=ITERATIONS,
        nredo=RESTARTS,
        seed=seed,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=1000,
    )
    kmeans.train(rows)
    nearest = torch.from_numpy(kmeans.index.search(rows, 1)[1][:, 0])
    sizes = torch.bincount(nearest, minlength=wanted)
    order = sizes.argsort(descending=True, stable=True)
    order = order[sizes[order] > 0]
    rank = torch.empty(wanted, dtype=torch.int64).scatter(0, order, torch.arange(len(order)))
    return Clusters(rank[nearest], torch.from_numpy(kmeans.centroids)[order])


def closest_to_centroid(emb: Tensor, clusters: Clusters, count: int) -> list[list[int]]:
    """Return for each cluster the rows of its `count` prompts nearest to the centroid, nearest first."""
    cosine = (emb.float() * clusters.centroids[clusters.labels]).sum(1)
    chosen = []
    for number in range(len(clusters.centroids)):
        rows = (clusters.labels == number).nonzero()[:, 0]
        chosen.append(rows[cosine[rows].argsort(descending=True, stable=True)[:count]].tolist())
    return chosen
