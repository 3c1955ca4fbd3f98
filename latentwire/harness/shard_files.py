"""Numbered pieces of a large result, each complete or not there. Main entries: `ShardFolder`, `FinishedShards`.

A shard NAME is some files NAME.PART.npy and NAME.PART.parquet, and NAME.json with their digests. The JSON file is
written last. A shard whose files do not match it counts as missing, so that it is made again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentwire.harness.assets import file_sha256
from latentwire.harness.errors import UserError
from latentwire.harness.progress import log
from latentwire.harness.results import DamagedResultError, JsonObject, open_atomically, read_json, write_json, writing

if TYPE_CHECKING:
    import pyarrow as pa

Array = np.ndarray[Any, Any]


def is_sharded(path: Path) -> bool:
    """Return whether a path is a folder of shards: it is a folder, or its name has no ending."""
    return path.is_dir() or not path.suffix


@dataclass(frozen=True)
class ShardFolder:
    """A folder of shards that were made in the same way.

    Attributes:
        folder: The folder.
        key: Everything that the shards depend on, as a hash. A shard with another key counts as missing.
    """

    folder: Path
    key: str

    def save(
        self,
        name: str,
        arrays: Mapping[str, Array] | None = None,
        tables: Mapping[str, pa.Table] | None = None,
        facts: JsonObject | None = None,
    ) -> None:
        """Write a shard completely or not at all.

        Args:
            name: Name of the shard.
            arrays: Arrays by part.
            tables: Tables by part.
            facts: What else is known of the shard, as JSON.

        Raises:
            ResultWriteError: The folder is not writable, or the disk is full.
        """
        written: dict[str, str] = {}
        for part, array in (arrays or {}).items():
            path = self.folder / f"{name}.{part}.npy"
            with open_atomically(path) as file, writing(path):
                np.save(file, array, allow_pickle=False)
            written[path.name] = file_sha256(path)
        for part, table in (tables or {}).items():
            from pyarrow import parquet

            path = self.folder / f"{name}.{part}.parquet"
            with open_atomically(path) as file, writing(path):
                parquet.write_table(table, file, compression="zstd")
            written[path.name] = file_sha256(path)
        write_json(self._record(name), {"key": self.key, "files": written, "facts": facts or {}})

    def is_finished(self, name: str) -> bool:
        """Return whether a shard is complete. A damaged one is named in a warning."""
        try:
            record = read_json(self._record(name))
        except FileNotFoundError:
            return False
        except DamagedResultError:
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("files"), dict):
            log(f"warning: {self._record(name)} is damaged; shard {name} counts as missing")
            return False
        if record.get("key") != self.key:
            return False
        for file, digest in record["files"].items():
            path = self.folder / file
            if not path.is_file() or file_sha256(path) != digest:
                log(f"warning: {path} is {'damaged' if path.is_file() else 'missing'}; shard {name} counts as missing")
                return False
        return True

    def array(self, name: str, part: str) -> Array:
        """Return an array of a shard, mapped into memory and not writable.

        Raises:
            UserError: The file cannot be read.
        """
        path = self.folder / f"{name}.{part}.npy"
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error}); run the same command again to make it again") from error

    def table(self, name: str, part: str) -> pa.Table:
        """Return a table of a shard.

        Raises:
            UserError: The file cannot be read.
        """
        import pyarrow as pa
        from pyarrow import parquet

        path = self.folder / f"{name}.{part}.parquet"
        try:
            return parquet.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path}: cannot be read ({error}); run the same command again to make it again") from error

    def facts(self, name: str) -> JsonObject:
        """Return the facts of a finished shard."""
        record = read_json(self._record(name))
        assert isinstance(record, dict)
        facts: JsonObject = record["facts"]
        return facts

    def digests(self, name: str) -> dict[str, str]:
        """Return the sha256 of each file of a finished shard."""
        record = read_json(self._record(name))
        assert isinstance(record, dict)
        files: dict[str, str] = record["files"]
        return files

    def _record(self, name: str) -> Path:
        return self.folder / f"{name}.json"


class FinishedShards:
    """Whether shards are finished, for loops that look again and again.

    A shard that is missing or damaged counts as missing until its record changes, so its damage is named once.

    Args:
        files: The folder.
    """

    def __init__(self, files: ShardFolder) -> None:
        self.files = files
        self._missing: dict[str, tuple[int, int] | None] = {}  # time and inode of the record when it was checked

    def __call__(self, name: str) -> bool:
        """Return whether a shard is complete."""
        stamp = self._stamp(name)
        if name in self._missing and self._missing[name] == stamp:
            return False
        if self.files.is_finished(name):
            return True
        self._missing[name] = stamp
        return False

    def _stamp(self, name: str) -> tuple[int, int] | None:
        try:
            status = (self.files.folder / f"{name}.json").stat()
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_ino
