"""Planted clusters of prompts: sizes by a power law, in a narrow cone, with noise between them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.helpers.random import draws


def planted(
    seed: int, n: int = 3000, width: int = 256, clusters: int = 20, noise: float = 0.01
) -> tuple[Tensor, Tensor]:
    """Return unit rows (N, D) and the cluster of each, -1 for noise, in mixed order.

    Cluster sizes are proportional to rank^-1.2 and at least 12. Each cluster varies in 8 directions of its own. A
    common offset of length 3 makes all cosines high, as between real embeddings.
    """
    generator = draws(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    noisy = round(noise * n)
    shares = torch.arange(1, clusters + 1, dtype=torch.float64) ** -1.2
    sizes = (shares / shares.sum() * (n - noisy)).round().long().clamp(min=12)
    sizes[0] += n - noisy - sizes.sum()
    parts = []
    for size in sizes.tolist():
        directions = normal(8, width) / width**0.5
        parts.append(normal(width) / width**0.5 + 0.35 * normal(size, 8) @ directions / 8**0.5)
    x = torch.cat([*parts, 1.2 * normal(noisy, width) / width**0.5])
    offset = normal(width)
    labels = torch.cat([torch.arange(clusters).repeat_interleave(sizes), torch.full((noisy,), -1)])
    mixed = torch.randperm(n, generator=generator)
    return normalize(x + 3 * offset / offset.norm(), dim=1)[mixed], labels[mixed]
