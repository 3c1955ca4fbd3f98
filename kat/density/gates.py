"""Whether a density of the user's own prompts is local and stable, and avoids crowds. Main entry: `measure_gates()`.

An estimator that works on planted clusters may measure something else on real prompts. These numbers show it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from kat.density.estimate import Density, distinct_rows, estimate
from kat.density.estimators import DensitySpec
from kat.density.nearest import nearest
from kat.density.ranks import rank_correlation
from kat.density.records import GateNumbers
from latentwire.harness.errors import UserError

ROWS = 3000  # most prompts of the gates that estimate again
FEWEST = 200  # different prompts; with fewer, a planted crowd would be too large a share of them
COPIES, CLOSE = 20, 0.25  # near copies; their distance, relative to the median distance to the nearest neighbour
PLACES = (0.005, 0.01, 0.03, 0.06, 0.1)  # quantiles of rarity at which a crowd is planted, rarest first
COMPARED, AT_A_TIME = 200, 25  # prompts with a density among each half, and how many of them join a half together
DIVISIONS = 4  # divisions into halves with other prompts to compare; one alone varies by .05
LOWEST_LOCAL_SHARE = 0.5
HIGHEST_CENTRE_CORRELATION = 0.5
HIGHEST_CROWD_RATIO = 1.0
LOWEST_STABILITY = 0.8
LOWEST_AGREEMENT = 0.3


def measure_gates(
    emb: Tensor, spec: DensitySpec, found: Density, seed: int = 0, other: Density | None = None
) -> GateNumbers:
    """Return numbers that show whether a density is local, stable and not fooled by crowds.

    The crowd and the stability need new estimates. They use up to 3,000 of the different prompts, chosen at random, and
    the exact search, so their cost does not grow with N.

    Args:
        emb: Unit rows, (N, D).
        spec: The settings of the density.
        found: The density of these rows.
        seed: The seed of the chosen prompts, the halves and the crowds.
        other: The density of the same prompts, in the same order, from another embedder.

    >>> emb = normalize(torch.randn(300, 30, generator=torch.Generator().manual_seed(0)))
    >>> gates = measure_gates(emb, DensitySpec(), estimate(emb, DensitySpec()))
    >>> gates["crowd_ratio"] < 1, gates["local_share"]
    (True, 1.0)
    """
    places, place_of, _ = distinct_rows(emb)
    density = torch.empty(len(places), dtype=torch.float64).scatter(0, place_of, found.density)
    chosen = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:ROWS]
    centre = rank_correlation(found.density, emb.float() @ emb.float().mean(0))
    gates = gates_of_sample(places[chosen], density[chosen], spec, found, centre, seed)
    if other is not None:
        gates["agreement"] = rank_correlation(found.density, other.density)
        gates["weights_apart"] = float((found.weights - other.weights).abs().sum() / 2)
    return gates


def gates_of_sample(
    places: Tensor, density: Tensor, spec: DensitySpec, found: Density, centre: float, seed: int
) -> GateNumbers:
    """Return the gates of a density from a sample of the different prompts.

    Args:
        places: Different unit rows chosen at random, at most `ROWS`, (Q, D).
        density: Their densities among all prompts, (Q,).
        spec: The settings of the density.
        found: The density of all prompts.
        centre: The rank correlation of the density with the cosine to the mean embedding.
        seed: The seed of the halves and the crowds.
    """
    again = replace(spec, gamma=found.gamma, target_ess=None, index="exact")
    enough = len(places) >= max(FEWEST, 4 * (spec.k + 1))
    crowd = crowd_ratios(places, density, again, seed) if enough else None
    return {
        "local_share": found.local_share,
        "centre_correlation": centre,
        "crowd_ratio": max(crowd) if crowd else None,
        "crowd_ratio_mean": sum(crowd) / len(crowd) if crowd else None,
        "stability": _stability(places, again, seed) if enough else None,
        "agreement": None,
        "weights_apart": None,
    }


def crowd_ratios(x: Tensor, density: Tensor, spec: DensitySpec, seed: int) -> list[float]:
    """Return the mass of 20 near copies of a rare prompt over their uniform share, for each of five rare prompts.

    A near copy is at a quarter of the median distance between nearest neighbours, in a random direction. Near copies
    are a crowd, so their ratio should be below 1. It is above 1 for a density that measures something else.

    Args:
        x: Different unit rows, (N, D).
        density: Their densities, (N,).
        spec: The settings of the density, with gamma.
        seed: The seed of the directions.
    """
    gaps = nearest(x, 1, index="exact", min_recall=1.0, seed=seed).distances[:, 0]
    order, generator = density.argsort(stable=True), torch.Generator().manual_seed(seed)
    ratios = []
    for quantile in PLACES:
        steps = normalize(torch.randn(COPIES, x.shape[1], generator=generator), dim=1)
        crowd = normalize(x[order[int(quantile * len(x))]] + CLOSE * gaps.median() * steps, dim=1)
        weights = estimate(torch.cat([x, crowd]), spec, seed).weights
        ratios.append(float(weights[-COPIES:].sum()) * len(weights) / COPIES)
    return ratios


def _stability(x: Tensor, spec: DensitySpec, seed: int) -> float:
    return sum(stability_over_halves(x, spec, seed + division) for division in range(DIVISIONS)) / DIVISIONS


def stability_over_halves(x: Tensor, spec: DensitySpec, seed: int) -> float:
    """Return the rank correlation of prompts' densities among two random halves of the other prompts.

    200 prompts are compared. 25 of them at a time join both halves.

    Args:
        x: Different unit rows, (N, D).
        spec: The settings of the density.
        seed: The seed of the halves.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    densities: tuple[list[Tensor], list[Tensor]] = ([], [])
    for own in order[: min(COMPARED, len(x) // 2)].split(AT_A_TIME):
        others = order[~torch.isin(order, own)]
        others = others[torch.randperm(len(others), generator=generator)]
        for half, found in zip(others.tensor_split(2), densities, strict=True):
            found.append(estimate(x[torch.cat([own, half])], spec, seed).density[: len(own)])
    return rank_correlation(torch.cat(densities[0]), torch.cat(densities[1]))


def gate_warnings(gates: GateNumbers) -> list[str]:
    """Return a warning with a remedy for each number that is beyond its limit."""
    share, centre, crowd = gates["local_share"], gates["centre_correlation"], gates["crowd_ratio"]
    stability, agreement = gates["stability"], gates["agreement"]
    warnings = []
    other = "use the default estimator, remove what is repeated with small changes, or use another embedder"
    if share < LOWEST_LOCAL_SHARE:
        warnings.append(
            f"the density is not local: a prompt and its k nearest supply {share:.1%} of it on average, and the crowd "
            f"at large the rest; {other}"
        )
    if crowd is not None and abs(centre) > HIGHEST_CENTRE_CORRELATION:
        warnings.append(
            f"the density has a rank correlation of {centre:.2f} with the cosine to the mean of all prompts, so it "
            f"measures how typical a prompt is; {other}"
        )
    if crowd is not None and crowd >= HIGHEST_CROWD_RATIO:
        warnings.append(
            f"a crowd of {COPIES} near copies of a rare prompt is drawn {crowd:.2f} times as often as uniformly, so "
            f"the weights feed crowds; {other}"
        )
    if stability is not None and stability < LOWEST_STABILITY:
        warnings.append(
            f"the density is noisy: among two halves of the prompts it has a rank correlation of {stability:.2f}; use "
            "more prompts or a larger sampler.k, or raise sampler.target_ess so that the weights rely on it less"
        )
    if agreement is not None and agreement < LOWEST_AGREEMENT:
        warnings.append(
            f"the two embedders disagree: their densities have a rank correlation of {agreement:.2f}; look at the "
            "rarest prompts of both, and choose the embedder that finds what you call rare"
        )
    return warnings


def require_crowd_gate(gates: GateNumbers, weights: str) -> None:
    """Check that weights do not feed crowds.

    Args:
        gates: The numbers of the weights.
        weights: The file of the weights, for the message.

    Raises:
        UserError: A planted crowd is drawn as often as uniformly, or more often.
    """
    if gates["crowd_ratio"] is not None and gates["crowd_ratio"] >= HIGHEST_CROWD_RATIO:
        raise UserError(
            f"{weights}: a crowd of {COPIES} near copies of a rare prompt is drawn {gates['crowd_ratio']:.2f} times as "
            "often as uniformly, so these weights feed crowds; run task=density with sampler.estimator=whitened_knn, "
            "or add force_weights=true to train with them"
        )
