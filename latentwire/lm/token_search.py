"""Exact search for the tokens nearest to embeddings, with a cache. Main entry: `TokenSearch.nearest()`."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from latentwire.lm.digest import digest

SEARCH_BLOCK = 64 * 2**20  # cosines in memory at a time (256 MiB in float32)
REMEMBERED_SEARCHES = 4096  # searches in the cache: one for each example and source, (T, 10) ids each
FIRST_K = 10  # neighbours of every search, so that the cache also answers smaller k


class TokenSearch:
    """Exact search by cosine, because an encoder's vectors often have the wrong length.

    Equal queries are searched once. The 17 configurations of sweep=embed35 that need neighbours share one search for
    each source and example.

    Args:
        embeddings: Token embeddings, (V, D) float32.
    """

    def __init__(self, embeddings: Tensor) -> None:
        self.embeddings = embeddings
        norms = embeddings.norm(dim=-1)
        self.inverse_norms = torch.where(norms > 0, 1 / norms, torch.zeros_like(norms))
        self.searches = 0  # number of searches that the cache did not answer
        self._known: OrderedDict[bytes, Tensor] = OrderedDict()

    @torch.no_grad()
    def nearest(self, x: Tensor, k: int) -> Tensor:
        """Return the ids of the k tokens with the largest cosine, best first: (N, D) -> (N, k) int64."""
        key = digest([x])
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
