"""How well estimators of density find rare clusters and rare prompts. Main entry: `quality()`.

Two tables in Markdown: planted clusters, whose even shares are known, and real prompts in two embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.density_candidates import CANDIDATES, Candidate, distances, lengths_kept
from benchmarks.density_toys import MASS, NOISE, TOYS, toy
from benchmarks.paraphrases import KINDS, paraphrase_id, sampled_texts
from kat.density.diagnostics import on_clusters
from kat.density.estimate import effective_sample_size, weigh
from kat.density.ranks import rank_correlation
from kat.embedding.store import load_embeddings

COPIES, CLOSE = 20, 0.25  # near copies; their distance, relative to the median distance to the nearest neighbour
PLACES = (0.005, 0.01, 0.03, 0.06, 0.1, 0.3)  # quantiles of rarity at which crowds are planted, rarest first
TARGET_ESS, CAP, CROWD_CAP = 0.4, 0.95, 0.1
Temper = Callable[[Tensor], Tensor]


def by_value(density: Tensor) -> Tensor:
    """Return weights density^-gamma, capped on both sides, with ESS .4 N."""
    return weigh(density, None, TARGET_ESS, CAP, CROWD_CAP)[1]


def capped_above(density: Tensor) -> Tensor:
    """Return weights density^-gamma, capped where they are large, with ESS .4 N."""
    return weigh(density, None, TARGET_ESS, CAP)[1]


def by_rank(density: Tensor) -> Tensor:
    """Return weights exp(-gamma rank), capped where they are large, with ESS .4 N."""
    ranks = density.argsort(stable=True).argsort(stable=True).double()
    return weigh((ranks / len(ranks)).exp(), None, TARGET_ESS, CAP)[1]


@dataclass(frozen=True)
class RealSet:
    """Embeddings of the same prompts by one embedder, and of changed prompts.

    Attributes:
        emb: Unit rows, (N, D).
        rows: Row of each changed prompt, (M,).
        changed: Unit rows of the changes of each kind, (M, D).
    """

    emb: Tensor
    rows: Tensor
    changed: dict[str, Tensor]


def quality(cfg: DictConfig) -> None:
    """Print both tables, each row as soon as it is measured."""
    seeds = range(cfg.seeds)
    chosen = [name for name in CANDIDATES if cfg.only in name]
    methods = [(name, CANDIDATES[name], capped_above if "0.3" in name else by_value) for name in chosen]
    for name in chosen:
        if name.startswith("**"):
            methods.append((f"{name}, crowded ones not capped", CANDIDATES[name], capped_above))
            methods.append((f"{name}, weights by rank", CANDIDATES[name], by_rank))
    print(f"Planted clusters, {cfg.seeds} seeds:\n")
    columns = [*(f"TV: {kind}" for kind in TOYS), "ten rarest, planted", "noise, worst", "copies, worst"]
    _print_header(columns)
    for name, candidate, temper in methods:
        print(_row(name, _on_toys(candidate, temper, seeds)), flush=True)
    if not cfg.real:
        return
    sets = _real_sets(str(cfg.real).split(","), str(cfg.changed).split(","), Path(cfg.prompts))
    numbers = " and ".join(f"{len(one.emb)} x {one.emb.shape[1]}" for one in sets)
    print(f"\nReal prompts, {cfg.real} ({numbers}):\n")
    both = ["centre", "length", "copies, mean, worst", "halves", "changed", "p99/p1"]
    _print_header([*both, "agreement: rank, TV", "ESS/N"])
    for name, candidate, temper in methods:
        print(_row(name, _on_real(candidate, temper, sets)), flush=True)


def _print_header(columns: Sequence[str]) -> None:
    print("| estimator | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))


def _row(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | " + " | ".join(cells) + " |"


def _shown(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.{digits}f}"


def _on_toys(candidate: Candidate, temper: Temper, seeds: Sequence[int]) -> list[str]:
    variation = torch.zeros(len(TOYS), len(seeds))
    noise, rare, crowds = torch.zeros_like(variation), [], []
    for i, kind in enumerate(TOYS):
        for j, seed in enumerate(seeds):
            x, labels = toy(kind, seed)
            weights, inside = temper(candidate(x)), labels != MASS
            found = on_clusters(weights[inside] / weights[inside].sum(), labels[inside])
            variation[i, j], noise[i, j] = found["total_variation"], float(weights[labels == NOISE].sum())
            if kind == "planted":
                rare.append(found["rare"])
                places = (labels == NOISE).nonzero()[:2, 0].tolist()
                crowds += crowd_ratios(x, candidate, temper, places)
    cells = [_shown(value, 3) for value in variation.mean(1).tolist()]
    return [*cells, _shown(sum(rare) / len(rare)), _shown(float(noise.mean(1).max()), 3), _shown(max(crowds))]


def crowd_ratios(x: Tensor, candidate: Candidate, temper: Temper, places: Sequence[int]) -> list[float]:
    """Return the mass of 20 near copies of a row over their uniform share, for each place by itself.

    A near copy is at a quarter of the median distance between nearest neighbours, in a random direction.
    """
    radius = CLOSE * float(distances(x).min(1).values.median())
    ratios = []
    for number, place in enumerate(places):
        steps = torch.randn(COPIES, x.shape[1], generator=torch.Generator().manual_seed(number))
        crowd = normalize(x[place] + radius * normalize(steps, dim=1), dim=1)
        weights = temper(candidate(torch.cat([x, crowd])))
        ratios.append(float(weights[-COPIES:].sum()) * len(weights) / COPIES)
    return ratios


def halves(x: Tensor, candidate: Candidate, prompts: int = 200, at_a_time: int = 25) -> float:
    """Return the rank correlation of densities in two random halves.

    200 prompts get a density among each half, 25 at a time, which are in neither.
    """
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(x), generator=generator)
    densities: tuple[list[Tensor], list[Tensor]] = ([], [])
    for own in order[:prompts].split(at_a_time):
        others = order[~torch.isin(order, own)]
        others = others[torch.randperm(len(others), generator=generator)]
        for half, found in zip(others.tensor_split(2), densities, strict=True):
            found.append(candidate(torch.cat([x[own], x[half]]))[: len(own)])
    return rank_correlation(torch.cat(densities[0]), torch.cat(densities[1]))


def stability_to_changes(one: RealSet, candidate: Candidate, at_a_time: int = 20) -> float:
    """Return the rank correlation of densities of prompts and of their slightly changed texts.

    Changed prompts of one kind replace the original ones, 20 at a time. The result is the mean over the kinds.
    """
    before, kinds = candidate(one.emb)[one.rows], []
    for changed in one.changed.values():
        after = torch.empty_like(before)
        for part in torch.arange(len(one.rows)).split(at_a_time):
            x = one.emb.clone()
            x[one.rows[part]] = changed[part]
            after[part] = candidate(x)[one.rows[part]]
        kinds.append(rank_correlation(before, after))
    return sum(kinds) / len(kinds)


def _on_real(candidate: Candidate, temper: Temper, sets: Sequence[RealSet]) -> list[str]:
    columns: list[list[str]] = []
    densities = [candidate(one.emb) for one in sets]
    for one, density in zip(sets, densities, strict=True):
        order = density.argsort(stable=True)
        ratios = crowd_ratios(one.emb, candidate, temper, [int(order[int(q * len(order))]) for q in PLACES])
        weights = temper(density)
        ratio = float(weights.quantile(0.99) / weights.quantile(0.01))
        columns.append([
            _shown(rank_correlation(density, one.emb @ one.emb.mean(0))),
            _shown(rank_correlation(density, -lengths_kept(one.emb).norm(dim=1))),
            f"{_shown(sum(ratios) / len(ratios))}, {_shown(max(ratios))}",
            _shown(halves(one.emb, candidate)),
            _shown(stability_to_changes(one, candidate)),
            f"{ratio:.3g}",
        ])  # fmt: skip
    both = [temper(density) for density in densities]
    apart = float((both[0] - both[-1]).abs().sum() / 2)
    agreement = f"{_shown(rank_correlation(densities[0], densities[-1]))}, {_shown(apart, 3)}"
    size = sum(effective_sample_size(one) / len(one) for one in both) / len(both)
    return [*(" / ".join(cells) for cells in zip(*columns, strict=True)), agreement, _shown(size)]


def _real_sets(files: Sequence[str], changes: Sequence[str], prompts: Path) -> list[RealSet]:
    """Return the embeddings of the files in the order of the first file's ids."""
    texts, first, sets = sampled_texts(prompts), load_embeddings(files[0])[0], []
    for file, change in zip(files, changes, strict=True):
        ids, emb = load_embeddings(file)
        row = {name: i for i, name in enumerate(ids)}
        other_ids, other = load_embeddings(change)
        other_row = {name: i for i, name in enumerate(other_ids)}
        changed = {
            kind: other[torch.tensor([other_row[paraphrase_id(text, kind)] for text in texts.values()])]
            for kind in KINDS
        }
        order = torch.tensor([row[name] for name in first])
        rows = torch.tensor([first.index(name) for name in texts])
        sets.append(RealSet(emb[order], rows, changed))
    return sets
