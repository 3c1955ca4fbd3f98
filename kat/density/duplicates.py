"""Groups of prompts that are nearly the same. Main entries: `near_duplicate_groups()`, `describe_groups()`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from kat.density.estimate import distinct_rows
from kat.density.estimators import DensitySpec
from kat.density.nearest import Neighbours, nearest
from kat.density.records import DuplicateGroup, DuplicateGroups
from kat.density.whitening import whiten
from latentwire.harness.errors import UserError

SHOWN = 5  # groups and prompts of a group in density.json
LINKS = 10  # nearest neighbours that may be in the same group; larger groups form chains


def near_duplicate_groups(
    emb: Tensor, threshold: float, spec: DensitySpec, seed: int = 0, found: Neighbours | None = None
) -> Tensor:
    """Return the group of every prompt. Near-duplicates of near-duplicates are in the same group.

    Two prompts are near-duplicates if their embeddings have a cosine of at least `threshold` after whitening (see
    `kat.density.whitening.whiten`). Whitening makes the cosines of different embedders comparable: without it,
    unrelated prompts have a cosine of .9 with some embedders and 0 with others.

    Args:
        emb: Unit rows, (N, D).
        threshold: The cosine, above 0 and at most 1; 1 groups equal embeddings only.
        spec: The settings of the neighbour search.
        seed: The seed of the approximate search, if it is used.
        found: The neighbours of the whitened different rows, if they are known, so that they are not searched again.

    Returns:
        Group numbers, (N,) int64, in the order of their first rows.

    Raises:
        UserError: The threshold is out of range, or the rows vary in too few directions.

    >>> emb = torch.nn.functional.normalize(torch.randn(50, 20, generator=torch.Generator().manual_seed(0)))
    >>> near_copy = torch.nn.functional.normalize(emb[:1] + 0.01)
    >>> near_duplicate_groups(torch.cat([emb, near_copy]), 0.7, DensitySpec())[[0, 1, 50]].tolist()
    [0, 1, 0]
    """
    require_threshold(threshold)
    places, place_of, _ = distinct_rows(emb)
    edges = torch.empty(0, 2, dtype=torch.int64)
    if threshold < 1 and len(places) > 1:
        links = min(LINKS, len(places) - 1)
        if found is None or found.ids.shape[1] < links:
            found = nearest(whiten(places, seed), links, index=spec.index, min_recall=spec.min_recall, seed=seed)
        close = 1 - found.distances[:, :links].square() / 2 >= threshold  # of unit rows, the cosine
        rows, columns = close.nonzero().T
        edges = torch.stack([rows, found.ids[rows, columns]], dim=1)
    return groups_of(edges, len(places))[place_of]


def require_threshold(threshold: object) -> None:
    """Check the cosine of near-duplicates.

    Raises:
        UserError: It is not above 0 and at most 1.
    """
    if not isinstance(threshold, int | float) or isinstance(threshold, bool) or not 0 < threshold <= 1:
        raise UserError(f"near_duplicate={threshold}: must be a cosine, above 0 and at most 1 (1: equal ones only)")


def groups_of(edges: Tensor, count: int) -> Tensor:
    """Return the group of every place: places are in the same group if a path of edges connects them.

    Args:
        edges: Pairs of places, (E, 2) int64.
        count: The number M of places.

    Returns:
        Group numbers, (M,) int64, in the order of their first places.
    """
    first, second = edges.numpy().T
    graph = coo_array((np.ones(len(first), dtype=np.int8), (first, second)), shape=(count, count))
    labels = connected_components(graph, directed=False)[1]
    _, first_place, number = np.unique(labels, return_index=True, return_inverse=True)
    return torch.from_numpy(first_place.argsort(kind="stable").argsort(kind="stable")[number])


def describe_groups(groups: Tensor, shown: Callable[[list[int]], Sequence[tuple[str, ...]]]) -> DuplicateGroups:
    """Return the numbers of groups and of prompts with near-duplicates, and the largest groups.

    Args:
        groups: The group of every prompt, (N,) int64.
        shown: Returns the ids and the texts of rows, and perhaps more.
    """
    sizes = torch.bincount(groups)
    shared = (sizes > 1).nonzero()[:, 0]
    largest = shared[sizes[shared].argsort(descending=True, stable=True)][:SHOWN].tolist()
    described: list[DuplicateGroup] = []
    for number in largest:
        prompts = shown((groups == number).nonzero()[:SHOWN, 0].tolist())
        ids, texts = [prompt[0] for prompt in prompts], [prompt[1] for prompt in prompts]
        described.append({"size": int(sizes[number]), "ids": ids, "texts": texts})
    return {
        "groups": len(sizes),
        "groups_of_several": len(shared),
        "prompts_in_them": int(sizes[shared].sum()),
        "largest": described,
    }
