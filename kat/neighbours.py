"""The k nearest neighbours of every embedding among the others: exact, or in inverted lists with measured recall."""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np
import torch
from torch import Tensor

from latentwire.harness.errors import UserError

EXACT_UP_TO = 30_000  # rows; above, index=auto searches inverted lists
LISTS, PROBES = 256, 8  # one list for each 200 rows at EXACT_UP_TO; more lists where there are more rows
RECALL_QUERIES = 1000  # rows whose neighbours are searched exactly to measure the recall
INDEXES = ("auto", "exact", "ivf")


@dataclass(frozen=True)
class Neighbours:
    """The k nearest others of each row, nearest first.

    `distances` (N, K) float32, Euclidean; `ids` (N, K) int64, row numbers; `index` is what was searched, `recall`
    the share of the true neighbours that it found on a sample of rows (1 for exact).
    """

    distances: Tensor
    ids: Tensor
    index: str
    recall: float


def nearest(x: Tensor, k: int, *, index: str, min_recall: float, seed: int) -> Neighbours:
    """Find the k nearest other rows of each row; a row is never its own neighbour, whatever its distance.

    Args:
        x: Unit rows, (N, D) float32.
        k: Neighbours wanted, below N.
        index: exact, ivf (inverted lists), or auto: exact up to 30,000 rows.
        min_recall: What the measured recall of ivf must reach.
        seed: Of the lists' k-means and of the rows on which the recall is measured.

    Raises:
        UserError: k not in 1..N-1, an unknown index, or a recall below the floor.
    """
    if index not in INDEXES:
        raise UserError(f"index={index}: unknown; use one of {', '.join(INDEXES)}")
    if not 1 <= k < len(x):
        raise UserError(
            f"k={k} needs at least {k + 1} different prompts, got {len(x)}; lower sampler.k or add prompts"
            if k > 0
            else f"k={k}: must be at least 1"
        )
    rows = np.ascontiguousarray(x.detach().cpu().numpy(), dtype=np.float32)
    if index == "exact" or (index == "auto" and len(x) <= EXACT_UP_TO):
        return _measured(rows, _exact(rows, rows, np.arange(len(rows)), k), "exact", 1.0)
    found = _in_lists(rows, k, seed)
    recall = _recall(rows, found, seed)
    if recall < min_recall:
        raise UserError(
            f"index={index}: found {recall:.3f} of the true neighbours on a sample, below min_recall={min_recall}; "
            "use sampler.index=exact, or lower sampler.min_recall"
        )
    return _measured(rows, found, "ivf", recall)


def _exact(rows: np.ndarray, queries: np.ndarray, own: np.ndarray, k: int) -> np.ndarray:
    """Brute force by inner product, which orders unit rows as the distance does."""
    flat = _on_gpu(faiss.IndexFlatIP(rows.shape[1]))
    flat.add(rows)
    return _without_self(flat.search(queries, k + 1)[1], own)


def _in_lists(rows: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Search the PROBES lists nearest to each row; rows are asked list by list, so that the lists stay in the cache."""
    centred = rows - rows.mean(0)  # distances stay as they are
    lists = max(LISTS, int(len(rows) ** 0.5))
    quantizer = faiss.IndexFlatL2(rows.shape[1])
    index = faiss.IndexIVFFlat(quantizer, rows.shape[1], lists)
    index.cp.seed, index.cp.niter, index.cp.max_points_per_centroid, index.cp.min_points_per_centroid = seed, 6, 32, 1
    index.train(centred)
    index.add(centred)
    index.nprobe = PROBES
    order = np.argsort(quantizer.search(centred, 1)[1][:, 0], kind="stable")
    found = np.empty((len(rows), k), dtype=np.int64)
    found[order] = _without_self(index.search(centred[order], k + 1)[1], order)
    short = (found < 0).any(1).nonzero()[0]  # lists with fewer than k others: asked exactly
    if len(short):
        found[short] = _exact(rows, rows[short], short, k)
    return found


def _without_self(ids: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Drop each query's own row from its K + 1 nearest, or the last where it is not among them: (N, K)."""
    is_self = ids == own[:, None]
    is_self[~is_self.any(1), -1] = True
    return ids[~is_self].reshape(len(ids), -1)


def _recall(rows: np.ndarray, found: np.ndarray, seed: int) -> float:
    sample = np.random.default_rng(seed).permutation(len(rows))[:RECALL_QUERIES]
    true = _exact(rows, rows[sample], sample, found.shape[1])
    return float((found[sample][:, :, None] == true[:, None, :]).any(1).mean())


def _measured(rows: np.ndarray, found: np.ndarray, index: str, recall: float) -> Neighbours:
    """Compute the distances from differences: 2 - 2 cos loses half the digits where neighbours are close."""
    x, ids = torch.from_numpy(rows), torch.from_numpy(found)
    distances = torch.cat([(x[i] - row[:, None]).norm(dim=-1) for i, row in zip(ids.split(512), x.split(512), strict=True)])
    distances, order = distances.sort(dim=-1, stable=True)
    return Neighbours(distances, ids.gather(1, order), index, recall)


def _on_gpu(index: faiss.Index) -> faiss.Index:
    """Move an index to the GPUs where faiss was built for them."""
    if getattr(faiss, "get_num_gpus", int)() > 0:
        return faiss.index_cpu_to_all_gpus(index)
    return index
