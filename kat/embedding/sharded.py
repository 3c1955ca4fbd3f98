"""Embeddings in a folder of shards, mapped into memory. Main entry: `ShardedEmbeddings`.

Shard NAME holds NAME.emb.npy, unit rows (n, D) float16, and NAME.prompts.parquet with the columns id, source, digest
(of the text) and excerpt (its beginning). The folder's embeddings.json names the shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import torch
from torch import Tensor

from latentwire.harness.errors import UserError
from latentwire.harness.results import JsonObject, config_hash, read_json
from latentwire.harness.shard_files import Array, ShardFolder

if TYPE_CHECKING:
    import pyarrow as pa

RECORD = "embeddings.json"
REMEDY = "run task=embed again, which makes only what is missing"


class ShardsRecord(TypedDict):
    """The part of a folder's embeddings.json that names its shards."""

    format: int
    key: str
    embedder: JsonObject
    n: int
    dim: int
    shards: list[str]
    sizes: list[int]  # rows of each shard


@dataclass(frozen=True)
class ShardedEmbeddings:
    """Embeddings of N prompts in shards. Rows are numbered through all shards, in their order.

    Attributes:
        files: The folder of the shards.
        record: What its embeddings.json says.
    """

    files: ShardFolder
    record: ShardsRecord

    @classmethod
    def open(cls, folder: Path) -> ShardedEmbeddings:
        """Return the embeddings in a folder, after a check of every shard.

        Raises:
            UserError: The folder has no embeddings, or a shard is missing or damaged.
        """
        path = folder / RECORD
        if not folder.is_dir():
            raise UserError(f"embeddings_file={folder}: no such folder; make it with task=embed")
        if not path.is_file():
            raise UserError(f"embeddings_file={folder}: has no {RECORD}, so its shards are not complete; {REMEDY}")
        record = read_json(path)
        if not isinstance(record, dict) or not ShardsRecord.__required_keys__ <= record.keys():
            raise UserError(f"{path}: does not describe embeddings in shards; {REMEDY}")
        found: ShardsRecord = record  # type: ignore[assignment]
        files = ShardFolder(folder, found["key"])
        if bad := [name for name in found["shards"] if not files.is_finished(name)]:
            raise UserError(f"embeddings_file={folder}: shard {', '.join(bad)} is missing or damaged; {REMEDY}")
        return cls(files, found)

    def __len__(self) -> int:
        return self.record["n"]

    @property
    def dim(self) -> int:
        """The width D of the rows."""
        return self.record["dim"]

    @property
    def digest(self) -> str:
        """A hash of all shards."""
        return config_hash([self.files.digests(name) for name in self.names])

    @property
    def names(self) -> list[str]:
        """The names of the shards in order."""
        return self.record["shards"]

    @cached_property
    def starts(self) -> Array:
        """The number of the first row of each shard, and N: (S + 1,) int64."""
        return np.concatenate([[0], np.cumsum(self.record["sizes"])]).astype(np.int64)

    def rows(self, name: str) -> Array:
        """Return the rows of a shard, (n, D) float16, mapped into memory."""
        return self.files.array(name, "emb")

    def prompts(self, name: str) -> pa.Table:
        """Return the table of a shard's prompts: id, source, digest and excerpt."""
        return self.files.table(name, "prompts")

    def blocks(self, name: str, rows: int = 65_536) -> Iterator[Tensor]:
        """Yield the rows of a shard in order, at most `rows` at a time: (B, D) float32."""
        emb = self.rows(name)
        for start in range(0, len(emb), rows):
            yield torch.from_numpy(emb[start : start + rows].astype(np.float32))

    def take(self, rows: Array) -> Tensor:
        """Return rows by their numbers, which may be in any order: (len(rows), D) float32."""
        found = torch.empty(len(rows), self.dim)
        shard_of = np.searchsorted(self.starts, rows, side="right") - 1
        for number in np.unique(shard_of):
            mine = np.flatnonzero(shard_of == number)
            local = rows[mine] - self.starts[number]
            order = np.argsort(local)  # reads the file from front to back
            found[mine[order]] = torch.from_numpy(self.rows(self.names[number])[local[order]].astype(np.float32))
        return found

    def shown(self, rows: Sequence[int]) -> list[tuple[str, str, str]]:
        """Return the id, the beginning of the text and the source of rows by their numbers."""
        found: dict[int, tuple[str, str, str]] = {}
        shard_of = np.searchsorted(self.starts, rows, side="right") - 1
        for number in np.unique(shard_of):
            own = [row for row, shard in zip(rows, shard_of, strict=True) if shard == number]
            table = self.prompts(self.names[number]).take([row - int(self.starts[number]) for row in own])
            columns = (table[name].to_pylist() for name in ("id", "excerpt", "source"))
            found.update(zip(own, zip(*columns, strict=True), strict=True))
        return [found[row] for row in rows]
