"""The nearest tokens of an embedding, searched once and shared by every transform that asks."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import torch
from torch import Tensor

SEARCH_BLOCK = 64 * 2**20  # similarities held at a time (256 MiB in float32)
REMEMBERED_SEARCHES = 4096  # one per example and source; each holds T x 10 neighbours
FIRST_K = 10  # searched at once, so that smaller k are answered from the same search


class TokenSearch:
    """Exact search by cosine: what an encoder gets wrong first is the length of its vectors.

    Equal queries are searched once: the sweep's seventeen configurations that need neighbours of the same
    source share one search.

    Args:
        embeddings: Token embeddings, (V, D) float32.
    """

    def __init__(self, embeddings: Tensor) -> None:
        self.embeddings = embeddings
        norms = embeddings.norm(dim=-1)
        self.inverse_norms = torch.where(norms > 0, 1 / norms, torch.zeros_like(norms))
        self.searches = 0  # how often the vocabulary was really searched
        self._known: OrderedDict[bytes, Tensor] = OrderedDict()

    @torch.no_grad()
    def nearest(self, x: Tensor, k: int) -> Tensor:
        """Return the ids of the k tokens of largest cosine, best first: (N, D) -> (N, k) int64."""
        key = _digest(x)
        found = self._known.get(key)
        if found is None or found.shape[-1] < k:
            found = self._search(x, min(max(k, FIRST_K), len(self.embeddings)))
            self._known[key] = found
        self._known.move_to_end(key)
        if len(self._known) > REMEMBERED_SEARCHES:
            self._known.popitem(last=False)
        return found[:, :k]

    def _search(self, x: Tensor, k: int) -> Tensor:
        self.searches += 1
        block = max(1, SEARCH_BLOCK // len(self.embeddings))
        ids = [
            ((rows.float() @ self.embeddings.T) * self.inverse_norms).topk(k, dim=-1).indices for rows in x.split(block)
        ]
        return torch.cat(ids)


def _digest(x: Tensor) -> bytes:
    content = x.detach().cpu().contiguous().view(torch.uint8).numpy()
    return hashlib.blake2b(content.tobytes(), digest_size=16).digest() + str((x.shape, x.dtype)).encode()
