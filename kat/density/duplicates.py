"""Groups of prompts that are nearly the same. Main entries: `near_duplicate_groups()`, `describe_groups()`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kat.density.estimate import distinct_rows
from kat.density.estimators import DensitySpec
from kat.density.nearest import nearest
from kat.density.records import DuplicateGroup, DuplicateGroups
from kat.density.whitening import whiten
from latentwire.harness.errors import UserError

SHOWN = 5  # groups and prompts of a group in density.json
LINKS = 10  # nearest neighbours that may be in the same group; larger groups form chains


def near_duplicate_groups(emb: Tensor, threshold: float, spec: DensitySpec, seed: int = 0) -> Tensor:
    """Return the group of every prompt. Near-duplicates of near-duplicates are in the same group.

    Two prompts are near-duplicates if their embeddings have a cosine of at least `threshold` after whitening (see
    `kat.density.whitening.whiten`). Whitening makes the cosines of different embedders comparable: without it,
    unrelated prompts have a cosine of .9 with some embedders and 0 with others.

    Args:
        emb: Unit rows, (N, D).
        threshold: The cosine, above 0 and at most 1; 1 groups equal embeddings only.
        spec: The settings of the neighbour search.
        seed: The seed of the approximate search, if it is used.

    Returns:
        Group numbers, (N,) int64, in the order of their first rows.

    Raises:
        UserError: The threshold is out of range, or the rows vary in too few directions.

    >>> emb = torch.nn.functional.normalize(torch.randn(50, 20, generator=torch.Generator().manual_seed(0)))
    >>> near_copy = torch.nn.functional.normalize(emb[:1] + 0.01)
    >>> near_duplicate_groups(torch.cat([emb, near_copy]), 0.7, DensitySpec())[[0, 1, 50]].tolist()
    [0, 1, 0]
    """
    if not 0 < threshold <= 1:
        raise UserError(f"near_duplicate={threshold}: must be a cosine, above 0 and at most 1 (1: equal ones only)")
    places, place_of, _ = distinct_rows(emb)
    parent = list(range(len(places)))
    if threshold < 1 and len(places) > 1:
        k = min(LINKS, len(places) - 1)
        found = nearest(whiten(places, seed), k, index=spec.index, min_recall=spec.min_recall, seed=seed)
        close = 1 - found.distances.square() / 2 >= threshold  # of unit rows, the cosine
        for row, column in close.nonzero().tolist():
            first, second = sorted((_root(parent, row), _root(parent, int(found.ids[row, column]))))
            parent[second] = first
    roots = torch.tensor([_root(parent, place) for place in range(len(places))])
    numbers: Tensor = roots.unique(return_inverse=True)[1]
    return numbers[place_of]


def _root(parent: list[int], place: int) -> int:
    """Return the smallest place of a group, and shorten the path to it."""
    while parent[place] != place:
        parent[place] = parent[parent[place]]
        place = parent[place]
    return place


def describe_groups(groups: Tensor, ids: Sequence[str], texts: Sequence[str]) -> DuplicateGroups:
    """Return the numbers of groups and of prompts with near-duplicates, and the largest groups.

    Args:
        groups: The group of every prompt, (N,) int64.
        ids: The ids of the N prompts.
        texts: Their texts.
    """
    sizes = torch.bincount(groups)
    shared = (sizes > 1).nonzero()[:, 0]
    largest = shared[sizes[shared].argsort(descending=True, stable=True)][:SHOWN].tolist()
    shown: list[DuplicateGroup] = []
    for number in largest:
        rows = (groups == number).nonzero()[:SHOWN, 0].tolist()
        shown.append({"size": int(sizes[number]), "ids": [ids[i] for i in rows], "texts": [texts[i] for i in rows]})
    return {
        "groups": len(sizes),
        "groups_of_several": len(shared),
        "prompts_in_them": int(sizes[shared].sum()),
        "largest": shown,
    }
