"""The weights that task=density wrote, in a folder of shards or in one file. Main entry: `WeightFolder`.

A folder holds weights.npy, (N,) float64, which is mapped into memory, and NAME.prompts.parquet for each shard with the
columns id, source, density, weight and group. Its density.json names the shards. Their rows, one shard after the other,
are the rows of weights.npy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kat.data.tables import read_weights
from kat.density.records import DensityOrigin
from kat.records import read_kat_record
from kat.sampling.draws import DrawWeights, checked_weights, require_valid_weights
from latentwire.harness.assets import file_sha256
from latentwire.harness.errors import UserError
from latentwire.harness.results import DamagedResultError, read_json
from latentwire.harness.shard_files import Array, ShardFolder, is_sharded

if TYPE_CHECKING:
    import pyarrow as pa

RECORD, WEIGHTS = "density.json", "weights.npy"
REMEDY = "run task=density again, which makes only what is missing"
ROUNDING = 1e-6  # how far the sum of the weights may be from 1


class WeightShards(DensityOrigin):
    """The part of a folder's density.json that names its shards."""

    shards: list[str]
    sizes: list[int]  # rows of each shard


def draw_weights(path: Path) -> DrawWeights:
    """Return the weights in a folder of weights, mapped into memory, or in a weights.jsonl.

    Raises:
        UserError: The weights are missing, damaged or invalid.
    """
    if is_sharded(path):
        return DrawWeights(WeightFolder.open(path).weights)
    return DrawWeights(checked_weights(read_weights(path)[2]))


@dataclass(frozen=True)
class WeightFolder:
    """Weights of N prompts in a folder of shards. Rows are numbered through all shards, in their order.

    Attributes:
        files: The folder of the shards.
        record: What its density.json says.
    """

    files: ShardFolder
    record: WeightShards

    @classmethod
    def open(cls, folder: Path) -> WeightFolder:
        """Return the weights in a folder, after a check of every file against its digest.

        Raises:
            UserError: The folder has no weights, or a file is missing or damaged.
        """
        path, name = folder / RECORD, f"weights_file={folder}"
        if not path.is_file():
            raise UserError(f"{name}: has no {RECORD}, so its shards are not complete; {REMEDY}")
        found = cls(ShardFolder(folder, ""), read_kat_record(WeightShards, path, REMEDY))
        files = ShardFolder(
            folder, next(filter(None, (_key_of(folder / f"{shard}.json") for shard in found.names)), "")
        )
        if bad := [shard for shard in found.names if not files.is_finished(shard)]:
            raise UserError(f"{name}: shard {', '.join(bad)} is missing, damaged or of other weights; {REMEDY}")
        weights = folder / WEIGHTS
        if not weights.is_file() or file_sha256(weights) != found.record["weights_sha256"]:
            raise UserError(f"{name}: {WEIGHTS} is not the file that {RECORD} describes; {REMEDY}")
        return cls(files, found.record)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def names(self) -> list[str]:
        """The names of the shards in order."""
        return self.record["shards"]

    @cached_property
    def starts(self) -> Array:
        """The number of the first row of each shard, and N: (S + 1,) int64."""
        return np.concatenate([[0], np.cumsum(self.record["sizes"])]).astype(np.int64)

    @cached_property
    def weights(self) -> Tensor:
        """The sampling weights, (N,) float64, sum 1, mapped into memory.

        Raises:
            UserError: The file has other rows than the shards, or the weights are invalid.
        """
        path = self.files.folder / WEIGHTS
        try:
            values = np.load(path, mmap_mode="c", allow_pickle=False)  # copy on write: the file stays as it is
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error}); {REMEDY}") from error
        if values.shape != (len(self),) or values.dtype != np.float64:
            raise UserError(
                f"{path}: has {values.dtype} of shape {values.shape} and the shards have {len(self)} rows; {REMEDY}"
            )
        weights = torch.from_numpy(values)
        require_valid_weights(weights)
        if not abs(total := float(weights.sum()) - 1) < ROUNDING:
            raise UserError(f"{path}: the weights have the sum {total + 1}, not 1; {REMEDY}")
        return weights

    def groups(self) -> Tensor:
        """Return the group of near-duplicates of each prompt, (N,) int64.

        Raises:
            UserError: A shard cannot be read.
        """
        parts = [self.table(name).column("group").to_numpy() for name in self.names]
        return torch.from_numpy(np.concatenate(parts).astype(np.int64))

    def table(self, name: str) -> pa.Table:
        """Return the table of a shard's prompts.

        Raises:
            UserError: The shard cannot be read, or has another number of rows than density.json says.
        """
        table = self.files.table(name, "prompts")
        if len(table) != (size := self.record["sizes"][self.names.index(name)]):
            raise UserError(f"{self.files.folder}: shard {name} has {len(table)} rows, not {size}; {REMEDY}")
        return table

    def ids(self) -> Iterator[str]:
        """Yield the ids of all rows in their order. One shard is in memory at a time.

        Raises:
            UserError: A shard cannot be read.
        """
        for name in self.names:
            yield from self.table(name).column("id").to_pylist()

    def ids_of(self, rows: Tensor | Array) -> list[str]:
        """Return the ids of rows in the given order. Only the shards of these rows are read.

        Args:
            rows: Numbers of rows, in any order.

        Raises:
            UserError: A shard cannot be read.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        found = np.empty(len(wanted), dtype=object)
        shard_of = np.searchsorted(self.starts, wanted, side="right") - 1
        for number in np.unique(shard_of).tolist():
            mine = np.flatnonzero(shard_of == number)
            ids = self.table(self.names[number]).column("id")
            found[mine] = ids.take(wanted[mine] - self.starts[number]).to_pylist()
        names: list[str] = found.tolist()
        return names


def _key_of(path: Path) -> str:
    """Return the key with which a shard was made; empty for a missing or damaged one."""
    try:
        record = read_json(path)
    except (FileNotFoundError, DamagedResultError):
        return ""
    return str(record.get("key", "")) if isinstance(record, dict) else ""
