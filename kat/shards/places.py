"""Different rows of embeddings in shards; copies of a row are one place. Main entry: `find_places()`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kat.density.estimate import row_hash
from kat.embedding.sharded import ShardedEmbeddings
from latentwire.harness.shard_files import Array


@dataclass(frozen=True)
class Places:
    """M places of N rows, in the order of their first rows.

    Attributes:
        place_of: The place of each row, (N,) int64.
        first_row: The first row of each place, (M,) int64.
        copies: The number of rows of each place, (M,) int64.
    """

    place_of: Array
    first_row: Array
    copies: Array

    def __len__(self) -> int:
        return len(self.first_row)


def find_places(emb: ShardedEmbeddings) -> Places:
    """Return the places of the rows of all shards.

    Rows are compared by a hash of 16 bytes, so that 10^7 rows need half a gibibyte. One shard is read at a time.
    """
    hashes = np.empty((len(emb), 2), dtype=np.uint64)
    for name, start in zip(emb.names, emb.starts[:-1], strict=True):
        digests = b"".join(row_hash(row) for row in emb.rows(name))
        found = np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)
        hashes[start : start + len(found)] = found
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable, so the first row of a place comes first
    is_new = np.ones(len(order), dtype=bool)
    is_new[1:] = (hashes[order[1:]] != hashes[order[:-1]]).any(axis=1)
    del hashes
    first_row = order[is_new]
    number = np.cumsum(is_new) - 1  # of each row's place, in the order of the hashes
    by_first_row = np.argsort(first_row, kind="stable")
    rank = np.empty_like(by_first_row)
    rank[by_first_row] = np.arange(len(by_first_row))
    place_of = np.empty(len(order), dtype=np.int64)
    place_of[order] = rank[number]
    return Places(place_of, first_row[by_first_row], np.bincount(place_of).astype(np.int64))
