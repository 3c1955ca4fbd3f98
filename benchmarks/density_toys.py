"""Planted clusters whose even shares are known, in several surroundings. Main entry: `toy()`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

N, WIDTH, CLUSTERS, NOISY, COMMON = 3000, 256, 20, 30, 1000
NOISE, MASS = -1, -2  # labels outside the clusters: noise, and the common mass
TOYS = ("planted", "off centre", "common mass", "anisotropic", "one of 80%")


def toy(kind: str, seed: int) -> tuple[Tensor, Tensor]:
    """Return unit rows and the cluster of each, in mixed order.

    planted: 20 clusters with sizes by rank^-1.2 (at least 12), 8 directions each, 1% noise, and a common offset that
    makes all cosines high. off centre: the centres are twice as far apart and the offset is a sixth. common mass: a
    third of the rows are a broad mass elsewhere. anisotropic: the standard deviation of dimension i falls as i^-1/2.
    one of 80%: one cluster has 80% of the rows, and the others have equal sizes.

    Args:
        kind: One of TOYS.
        seed: The seed.

    Returns:
        Rows, (N, D), and labels, (N,), NOISE or MASS outside the clusters.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    common = COMMON if kind == "common mass" else 0
    sizes = _sizes(kind, N - NOISY - common)
    far = 2.0 if kind == "off centre" else 1.0
    parts = [
        far * normal(WIDTH) / WIDTH**0.5 + 0.35 * normal(size, 8) @ (normal(8, WIDTH) / WIDTH**0.5) / 8**0.5
        for size in sizes.tolist()
    ]
    parts.append(1.2 * normal(NOISY, WIDTH) / WIDTH**0.5)
    if common:
        elsewhere = 2 * normal(WIDTH) / WIDTH**0.5
        parts.append(elsewhere + normal(common, 40) @ normal(40, WIDTH) / (40 * WIDTH) ** 0.5)
    x = torch.cat(parts)
    if kind == "anisotropic":
        spread = torch.arange(1, WIDTH + 1) ** -0.5
        x = x * spread / spread.square().mean().sqrt()
    offset = normalize(normal(WIDTH), dim=0) * (0.5 if kind == "off centre" else 3)
    labels = torch.arange(CLUSTERS).repeat_interleave(sizes)
    labels = torch.cat([labels, torch.full((NOISY,), NOISE), torch.full((common,), MASS)])
    mixed = torch.randperm(N, generator=generator)
    return normalize(x + offset, dim=1)[mixed], labels[mixed]


def _sizes(kind: str, rows: int) -> Tensor:
    """Return the sizes of the clusters, (20,), largest first."""
    if kind == "one of 80%":
        sizes = torch.full((CLUSTERS,), rows // 5 // (CLUSTERS - 1))
    else:
        shares = torch.arange(1, CLUSTERS + 1, dtype=torch.float64) ** -1.2
        sizes = (shares / shares.sum() * rows).round().long().clamp(min=12)
    sizes[0] += rows - sizes.sum()
    return sizes
