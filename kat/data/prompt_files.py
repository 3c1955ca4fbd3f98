"""Prompts in shards: consecutive rows of one file, read without the rows before. Main entry: `plan_shards()`.

Only the prompts of one shard need to be in memory. `require_unique_ids()` needs 16 bytes for each id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kat.data.files import RowRange, row_ranges
from kat.data.prompts import Prompt, prompt_paths, prompts_in, repeated_id
from latentwire.harness.assets import file_sha256
from latentwire.harness.results import config_hash

IdHashes = np.ndarray[Any, np.dtype[np.uint64]]


@dataclass(frozen=True)
class PromptShard:
    """A shard of the prompts: its name, from 00000, and its rows."""

    name: str
    part: RowRange

    def __len__(self) -> int:
        return self.part.rows

    def read(self) -> list[Prompt]:
        """Return the prompts of the shard.

        Raises:
            UserError: A row has no usable prompt, or two rows have the same id.
        """
        prompts: dict[str, Prompt] = {}
        places: dict[str, str] = {}
        for place, prompt in prompts_in(self.part.path, self.part):
            if prompt.id in prompts:
                raise repeated_id(prompt.id, self.part.path, place, self.part.path, places[prompt.id])
            prompts[prompt.id], places[prompt.id] = prompt, place
        return list(prompts.values())


def plan_shards(path: Path, most: int) -> list[PromptShard]:
    """Return the shards of a file of prompts, or of the files in a folder, in the order of the rows.

    Args:
        path: A file or a folder, as for `kat.data.prompts.read_prompts`.
        most: Largest number of rows in a shard.

    Raises:
        UserError: A file is missing, damaged or empty.
    """
    parts = [part for file in prompt_paths(path) for part in row_ranges(file, most, "prompts_file")]
    return [PromptShard(f"{number:05d}", part) for number, part in enumerate(parts)]


def prompt_digests(path: Path) -> dict[str, str]:
    """Return the sha256 of each file of prompts, by its name.

    Raises:
        UserError: The path does not exist, or the folder has no file with rows.
    """
    return {file.name: file_sha256(file) for file in prompt_paths(path)}


def prompts_sha256(path: Path) -> str:
    """Return the sha256 of a file of prompts, or a hash of the names and digests of the files in a folder.

    Raises:
        UserError: The path does not exist, or the folder has no file with rows.
    """
    return config_hash(prompt_digests(path)) if path.is_dir() else file_sha256(path)


def require_unique_ids(shards: Sequence[PromptShard], ids_of: Callable[[str], Iterable[str]]) -> None:
    """Check that no id occurs twice, with 16 bytes of memory for each id.

    Args:
        shards: All shards.
        ids_of: Returns the ids of all rows of a shard, in any order, by its name.

    Raises:
        UserError: Two rows have the same id. The message names both places.
    """
    hashes: IdHashes = np.concatenate([_hashes(ids_of(shard.name), len(shard)) for shard in shards])
    ends = np.cumsum([len(shard) for shard in shards])
    ordered = np.sort(hashes)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(repeated):
        return
    rows = np.flatnonzero(np.isin(hashes, repeated))
    places: dict[str, tuple[Path, str]] = {}
    for number in np.unique(np.searchsorted(ends, rows, side="right")):
        path = shards[number].part.path
        for place, prompt in prompts_in(path, shards[number].part):
            if prompt.id in places:
                raise repeated_id(prompt.id, path, place, *places[prompt.id])
            position = np.searchsorted(repeated, key := _hash(prompt.id))
            if position < len(repeated) and repeated[position] == key:
                places[prompt.id] = path, place


def _hashes(ids: Iterable[str], count: int) -> IdHashes:
    return np.fromiter((_hash(name) for name in ids), np.uint64, count)


def _hash(name: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
