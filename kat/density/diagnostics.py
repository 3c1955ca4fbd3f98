"""What sampling weights do: effective sample size, who gains mass, and a warning when they do nothing or explode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kat.density.estimate import effective_sample_size
from latentwire.harness.errors import UserError

DECILES = 10
IDLE_ESS = 0.98  # weights this even are all but uniform
WILD_ESS = 0.10  # fewer than a tenth of the prompts carry the draws
WILD_SPREAD = 1000.0  # p99/p1
STEEP_GAMMA = 25.0
NOISE = -1  # label of a prompt that belongs to no cluster


def diagnose_weights(
    density: Tensor, weights: Tensor, gamma: float, sources: Sequence[str], clusters: Tensor | None = None
) -> dict[str, Any]:
    """Describe weights (N,) of sum 1 in plain numbers, with warnings in words.

    Args:
        density: (N,).
        weights: (N,), sum 1.
        gamma: Exponent that the weights were made with.
        sources: Where each prompt comes from, N names.
        clusters: Known cluster of each prompt, (N,) int64, -1 for noise.
    """
    n = len(weights)
    ess = effective_sample_size(weights) / n
    low, high = torch.quantile(_sample(weights), torch.tensor([0.01, 0.99], dtype=weights.dtype)).tolist()
    spread = high / low if low > 0 else None
    shown = {
        "prompts": n,
        "ess": ess * n,
        "ess_share": ess,
        "p99_p1": spread,
        "largest_times_uniform": float(weights.max()) * n,
        "mass_by_source": _by_source(weights, sources),
        "mass_by_decile": mass_by_decile(density, weights),
    }
    if clusters is not None:
        shown["clusters"] = on_clusters(weights, clusters)
    return {**shown, "warnings": _warnings(ess, spread, gamma)}


def _sample(weights: Tensor) -> Tensor:
    """Every m-th of the sorted weights: torch.quantile takes at most 2^24 values."""
    return weights.sort().values[:: len(weights) // 2**24 + 1]


def _warnings(ess: float, spread: float | None, gamma: float) -> list[str]:
    found = []
    if ess > IDLE_ESS:
        found.append(
            f"the weights do nothing: ESS/N is {ess:.3f}, so draws are all but uniform; raise sampler.gamma, set "
            "sampler.target_ess, or take estimator=kde"
        )
    if ess < WILD_ESS or spread is None or spread > WILD_SPREAD:
        words = "infinite" if spread is None else f"{spread:.3g}"
        found.append(
            f"the weights explode: ESS/N is {ess:.3f} and p99/p1 {words}, so few prompts take most draws; lower "
            "sampler.gamma or sampler.cap, or set sampler.target_ess"
        )
    if gamma > STEEP_GAMMA:
        found.append(
            f"gamma is {gamma:.3g}: the densities hardly differ, and the weights blow their small differences up; "
            "raise sampler.target_ess, or try another embedder"
        )
    return found


def mass_by_decile(density: Tensor, weights: Tensor) -> list[float]:
    """Return the mass on each tenth of the prompts, the most crowded tenth first; N need not divide by ten."""
    order = density.argsort(descending=True, stable=True)
    return [float(weights[part].sum()) for part in order.tensor_split(DECILES)]


def _by_source(weights: Tensor, sources: Sequence[str]) -> dict[str, dict[str, float]]:
    names, number = _numbered(sources)
    mass = torch.zeros(len(names), dtype=weights.dtype).index_add(0, number, weights)
    count = torch.bincount(number, minlength=len(names))
    return {
        name: {"prompts": int(count[i]), "share": float(count[i]) / len(weights), "mass": float(mass[i])}
        for i, name in enumerate(names)
    }


def _numbered(names: Sequence[str]) -> tuple[list[str], Tensor]:
    known = sorted(set(names))
    place = {name: i for i, name in enumerate(known)}
    return known, torch.tensor([place[name] for name in names])


def on_clusters(weights: Tensor, clusters: Tensor) -> dict[str, float]:
    """Compare the mass of known clusters with an even share each, before (uniform) and after weighting.

    Total variation is half the sum of the absolute differences, among the clusters only; `rare` is the mass, among the
    clusters, of the smaller half of them, `rare_wanted` what an even share would give it.

    Raises:
        UserError: No prompt belongs to a cluster.
    """
    inside = clusters != NOISE
    if not inside.any():
        raise UserError("clusters: every prompt is noise (-1); give the cluster of at least one")
    _, number = clusters[inside].unique(return_inverse=True)
    sizes = torch.bincount(number).double()
    mass = torch.zeros(len(sizes), dtype=torch.float64).index_add(0, number, weights[inside].double())
    rare = sizes.argsort(stable=True)[: len(sizes) // 2]
    even = 1 / len(sizes)
    before, after = sizes / sizes.sum(), mass / mass.sum()
    return {
        "clusters": len(sizes),
        "total_variation_uniform": float((before - even).abs().sum() / 2),
        "total_variation": float((after - even).abs().sum() / 2),
        "rare_uniform": float(before[rare].sum()),
        "rare": float(after[rare].sum()),
        "rare_wanted": len(rare) / len(sizes),
        "noise_uniform": float((~inside).double().mean()),
        "noise": float(weights[~inside].sum()),
    }
