"""The k nearest neighbours of every embedding, by exact search or in inverted lists. Main entry: `nearest()`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import faiss
import numpy as np
import torch
from torch import Tensor

from kat.density.lists import fit_lists, list_count, lists_needed, nearest_lists, search_lists
from latentwire.harness.errors import UserError

EXACT_UP_TO = 30_000  # rows; with more rows, index=auto uses inverted lists
SAMPLE = 131_072  # rows that decide the lists
QUERIES = 131_072  # rows searched at a time, which limits the memory
NEAR, ROWS = 32, 1024  # lists near a list, at least; rows of a list that `Lists` yields at a time
RECALL_QUERIES = 1000  # rows with an exact search, to measure the recall
INDEXES = ("auto", "exact", "ivf")


@dataclass(frozen=True)
class Lists:
    """Rows grouped by k-means.

    `members` has the row numbers of each list. `near` has the numbers of the lists nearest to each list, which include
    the list itself.
    """

    members: list[Tensor]
    near: list[list[int]]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield at most ROWS rows of a list, and the rows among which their neighbours are searched."""
        for own, probed in zip(self.members, self.near, strict=True):
            if len(own):
                others = torch.cat([self.members[number] for number in probed])
                for queries in torch.split(own, ROWS):
                    yield queries, others


@dataclass(frozen=True)
class Neighbours:
    """The k nearest other rows of each row, nearest first.

    `distances` are Euclidean, (N, K) float32, and `ids` are row numbers, (N, K) int64. `index` is the search method,
    exact or ivf. `recall` is the share of the true neighbours found on a sample of rows, 1 for exact search. `lists`
    are the inverted lists of ivf, and `sample` the rows of the sample, (Q,), with their true distances, (Q, K).
    `searched` is the number of lists, and of those that were searched for each row.
    """

    distances: Tensor
    ids: Tensor
    index: str
    recall: float
    lists: Lists | None = None
    sample: tuple[Tensor, Tensor] | None = None
    searched: tuple[int, int] | None = None


def nearest(x: Tensor, k: int, *, index: str, min_recall: float, seed: int) -> Neighbours:
    """Return the k nearest other rows of each row. A row is never its own neighbour.

    Args:
        x: Unit rows, (N, D) float32.
        k: The number of neighbours, from 1 to N - 1.
        index: exact, ivf (inverted lists), or auto: exact up to 30,000 rows.
        min_recall: The recall of ivf on a sample of rows, from 0 to 1: as many lists are searched as it needs.
        seed: The seed of the k-means of the lists and of the sample for the recall.

    Raises:
        UserError: k is out of range, or the index is unknown.
    """
    if index not in INDEXES:
        raise UserError(f"index={index}: unknown; use one of {', '.join(INDEXES)}")
    check_neighbours(len(x), k)
    rows = np.ascontiguousarray(x.detach().cpu().numpy(), dtype=np.float32)
    if index == "exact" or (index == "auto" and len(x) <= EXACT_UP_TO):
        return _measured(rows, _exact(rows, rows, np.arange(len(rows)), k), "exact", 1.0)
    sample = _order(len(rows), seed)[-RECALL_QUERIES:]  # the first rows decide the lists
    true = _exact(rows, rows[sample.numpy()], sample.numpy(), k)
    found, lists, searched = _in_lists(torch.from_numpy(rows), k, min_recall, seed, sample, torch.from_numpy(true))
    recall = float((found[sample.numpy()][:, :, None] == true[:, None, :]).any(1).mean())
    measured = _measured(rows, found, "ivf", recall, lists)
    true_distances = _distances(torch.from_numpy(rows), sample, torch.from_numpy(true)).sort(1).values
    return replace(measured, sample=(sample, true_distances), searched=searched)


def check_neighbours(n: int, k: int) -> None:
    """Check that n different prompts have k neighbours.

    Raises:
        UserError: k is not from 1 to n - 1.
    """
    if not 1 <= k < n:
        raise UserError(
            f"k={k} needs at least {k + 1} different prompts, got {n}; lower sampler.k or add prompts"
            if k > 0
            else f"k={k}: must be at least 1"
        )


def _exact(rows: np.ndarray, queries: np.ndarray, own: np.ndarray, k: int) -> np.ndarray:
    """Return the neighbours by brute force; inner products order unit rows in the same way as distances."""
    flat = _on_gpu(faiss.IndexFlatIP(rows.shape[1]))
    flat.add(rows)
    return _without_self(flat.search(queries, k + 1)[1], own)


def _order(n: int, seed: int) -> Tensor:
    """Return all rows in random order, (N,) int64."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def _in_lists(
    x: Tensor, k: int, min_recall: float, seed: int, sample: Tensor, true: Tensor
) -> tuple[np.ndarray, Lists, tuple[int, int]]:
    """Search each row in the lists nearest to it, as many as reach the recall on a sample of rows.

    Args:
        x: Unit rows, (N, D).
        k: The number of neighbours.
        min_recall: The recall.
        seed: The seed of the lists.
        sample: The sample, (Q,).
        true: Its true neighbours, (Q, K).

    Returns:
        The neighbours (N, K) int64, the lists, their number and the number of those searched for each row.
    """
    centres = fit_lists(x[_order(len(x), seed)[:SAMPLE]], list_count(len(x)), seed)
    own = nearest_lists(x, centres, 1)[:, 0]
    members = torch.split(own.argsort(stable=True), torch.bincount(own, minlength=len(centres)).tolist())
    count = lists_needed(x[sample], centres, own[true], min_recall)
    rows, found = torch.arange(len(x)), torch.empty(len(x), k, dtype=torch.int64)
    for some in rows.split(QUERIES):
        probes = nearest_lists(x[some], centres, count)
        found[some] = search_lists(x[some], some, probes, lambda name: (x[members[name]], members[name]), k)[1]
    if len(few := rows[(found < 0).any(1)]):  # those that searched only small lists
        found[few] = torch.from_numpy(_exact(x.numpy(), x[few].numpy(), few.numpy(), k))
    near = nearest_lists(centres, centres, min(len(centres), max(NEAR, len(centres) // 16)))
    return found.numpy(), Lists(list(members), near.tolist()), (len(centres), count)


def _without_self(ids: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Drop each query's own row from its K + 1 nearest, or the last one if its own is not among them: (N, K)."""
    is_self = ids == own[:, None]
    is_self[~is_self.any(1), -1] = True
    others: np.ndarray = ids[~is_self].reshape(len(ids), -1)
    return others


def _measured(rows: np.ndarray, found: np.ndarray, index: str, recall: float, lists: Lists | None = None) -> Neighbours:
    x, ids = torch.from_numpy(rows), torch.from_numpy(found)
    distances, order = _distances(x, torch.arange(len(x)), ids).sort(dim=-1, stable=True)
    return Neighbours(distances, ids.gather(1, order), index, recall, lists)


def _distances(x: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
    """Return the distances of rows (Q,) of x to other rows of it, (Q, K): (Q, K) float32.

    They come from differences, because 2 - 2 cos loses half of the digits for close neighbours.
    """
    blocks = zip(ids.split(64), x[rows].split(64), strict=True)
    return torch.cat([(_gathered(x, i) - row[:, None]).square_().sum(-1).sqrt_() for i, row in blocks])


def _gathered(x: Tensor, ids: Tensor) -> Tensor:
    """Return x[ids], (B, K) -> (B, K, D); index_select is faster than indexing."""
    return x.index_select(0, ids.reshape(-1)).view(*ids.shape, -1)


def _on_gpu(index: faiss.Index) -> faiss.Index:
    """Move an index to the GPUs if faiss supports them."""
    if getattr(faiss, "get_num_gpus", int)() > 0:
        return faiss.index_cpu_to_all_gpus(index)
    return index
