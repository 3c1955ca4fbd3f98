"""The effect of sampling weights, with warnings if they do nothing or explode. Main entry: `diagnose_weights()`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kat.density.estimate import effective_sample_size
from kat.density.gates import gate_warnings
from kat.density.records import ClusterMass, GateNumbers, SourceMass, WeightDiagnostics
from latentwire.harness.errors import UserError

DECILES = 10
IDLE_ESS = 0.98  # ESS/N; above it the weights are almost uniform
WILD_ESS = 0.10  # ESS/N; below it less than a tenth of the prompts carry the draws
WILD_RATIO = 1000.0  # 99th percentile of the weights over the first
MOST_WEIGHTS_ERROR = 0.05  # total variation from the weights of an exact search
NOISE = -1  # label of a prompt outside all clusters


class Sources(NamedTuple):
    """The data set of each of N prompts: the names in order, and the number of each prompt's name, (N,) int64."""

    names: list[str]
    number: Tensor


def diagnose_weights(
    density: Tensor,
    weights: Tensor,
    sources: Sequence[str] | Sources,
    clusters: Tensor | None = None,
    gates: GateNumbers | None = None,
    weights_error: float | None = None,
) -> WeightDiagnostics:
    """Return numbers that describe sampling weights, and warnings.

    Args:
        density: The density of each prompt, (N,).
        weights: The sampling weights, (N,), sum 1.
        sources: The data set of each prompt: N names, or numbers of names.
        clusters: The known cluster of each prompt, (N,) int64, -1 for noise.
        gates: The numbers of `kat.density.gates.measure_gates`, which warn if they are beyond their limits.
        weights_error: The total variation from the weights of an exact search; None if it was not measured.

    Returns:
        The diagnostics of density.json. The effective sample size is `ess`, and its share of N is `ess_share`.

    >>> density, weights = torch.tensor([1.0, 1.0, 4.0, 4.0]), torch.tensor([0.4, 0.4, 0.1, 0.1])
    >>> found = diagnose_weights(density, weights, ["mine"] * 4)
    >>> round(found["ess"], 2), found["warnings"]  # 1 / (0.4^2 + 0.4^2 + 0.1^2 + 0.1^2)
    (2.94, [])
    """
    n = len(weights)
    ess = effective_sample_size(weights) / n
    low, high = torch.quantile(_sample(weights), torch.tensor([0.01, 0.99], dtype=weights.dtype)).tolist()
    ratio = high / low if low > 0 else None
    result: WeightDiagnostics = {
        "prompts": n,
        "ess": ess * n,
        "ess_share": ess,
        "p99_p1": ratio,
        "largest_times_uniform": float(weights.max()) * n,
        "mass_by_source": _by_source(weights, sources),
        "mass_by_decile": mass_by_decile(density, weights),
        "warnings": _warnings(ess, ratio, weights_error),
    }
    if clusters is not None:
        result["clusters"] = on_clusters(weights, clusters)
    if gates is not None:
        result["gates"] = gates
        result["warnings"] += gate_warnings(gates)
    return result


def _sample(weights: Tensor) -> Tensor:
    """Return every m-th of the sorted weights, because torch.quantile takes at most 2^24 values."""
    return weights.sort().values[:: len(weights) // 2**24 + 1]


def _warnings(ess: float, ratio: float | None, weights_error: float | None) -> list[str]:
    warnings = []
    if weights_error is not None and weights_error > MOST_WEIGHTS_ERROR:
        warnings.append(
            f"the weights differ from the weights of an exact search by a total variation of {weights_error:.2f}, more "
            f"than {MOST_WEIGHTS_ERROR}; raise sampler.min_recall if lists are searched, or use another estimator"
        )
    if ess > IDLE_ESS:
        warnings.append(
            f"the weights do nothing: ESS/N is {ess:.3f}, so draws are almost uniform; raise sampler.gamma, set "
            "sampler.target_ess, or try another embedder"
        )
    if ess < WILD_ESS or ratio is None or ratio > WILD_RATIO:
        shown = "infinite" if ratio is None else f"{ratio:.3g}"
        warnings.append(
            f"the weights explode: ESS/N is {ess:.3f} and p99/p1 is {shown}, so few prompts get most draws; lower "
            "sampler.gamma or sampler.cap, raise sampler.crowd_cap, or set sampler.target_ess"
        )
    return warnings


def mass_by_decile(density: Tensor, weights: Tensor) -> list[float]:
    """Return the mass of each tenth of the prompts, the most crowded tenth first."""
    order = density.argsort(descending=True, stable=True)
    return [float(weights[part].sum()) for part in order.tensor_split(DECILES)]


def _by_source(weights: Tensor, sources: Sequence[str] | Sources) -> dict[str, SourceMass]:
    names, number = sources if isinstance(sources, Sources) else _numbered(sources)
    mass = torch.zeros(len(names), dtype=weights.dtype).index_add(0, number, weights)
    count = torch.bincount(number, minlength=len(names))
    return {
        name: {"prompts": int(count[i]), "share": float(count[i]) / len(weights), "mass": float(mass[i])}
        for i, name in enumerate(names)
    }


def _numbered(names: Sequence[str]) -> Sources:
    known = sorted(set(names))
    number = {name: i for i, name in enumerate(known)}
    return Sources(known, torch.tensor([number[name] for name in names]))


def on_clusters(weights: Tensor, clusters: Tensor) -> ClusterMass:
    """Compare the mass of known clusters with equal shares, for uniform and for the given weights.

    All masses except noise are relative to the prompts in clusters. Total variation is half the sum of the absolute
    differences from equal shares. `rare` is the mass of the smaller half of the clusters, and `rare_wanted` its mass
    under equal shares.

    Args:
        weights: The sampling weights, (N,), sum 1.
        clusters: The known cluster of each prompt, (N,) int64, -1 for noise.

    Raises:
        UserError: Every prompt is noise.
    """
    inside = clusters != NOISE
    if not inside.any():
        raise UserError("clusters: every prompt is noise (-1); give the cluster of at least one")
    number = torch.from_numpy(np.unique(clusters[inside].numpy(), return_inverse=True)[1])
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
