"""Shards on disk: complete or missing, with damage named, and disks that fail."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from latentwire.harness import shard_files
from latentwire.harness.errors import UserError
from latentwire.harness.results import ResultWriteError
from latentwire.harness.shard_files import FinishedShards, ShardFolder
from tests.helpers.files import read_json

ROWS = np.arange(6, dtype=np.float16).reshape(3, 2)
FILES = ["00001.emb.npy", "00001.json", "00001.prompts.parquet"]


@pytest.fixture
def files(tmp_path) -> ShardFolder:
    """A folder with one shard of an array, a table and facts."""
    found = ShardFolder(tmp_path / "made" / "here", "key")
    found.save("00001", {"emb": ROWS}, {"prompts": pa.table({"id": ["a", "b", "c"]})}, {"rows": 3})
    return found


def test_a_shard_comes_back_as_it_was_saved(files):
    assert files.is_finished("00001")
    assert sorted(path.name for path in files.folder.iterdir()) == FILES
    assert np.array_equal(files.array("00001", "emb"), ROWS)
    assert files.table("00001", "prompts")["id"].to_pylist() == ["a", "b", "c"]
    assert files.facts("00001") == {"rows": 3}
    assert sorted(files.digests("00001")) == ["00001.emb.npy", "00001.prompts.parquet"]


def test_arrays_are_mapped_and_not_writable(files):
    array = files.array("00001", "emb")
    assert isinstance(array, np.memmap) and array.dtype == np.float16
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_another_key_counts_as_missing_without_a_warning(files, capfd):
    assert not ShardFolder(files.folder, "other").is_finished("00001")
    assert not files.is_finished("00002")
    assert capfd.readouterr().err == ""


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = [
    ("00001.emb.npy", truncate, "damaged"),
    ("00001.emb.npy", flip, "damaged"),
    ("00001.emb.npy", Path.unlink, "missing"),
    ("00001.prompts.parquet", flip, "damaged"),
    ("00001.prompts.parquet", Path.unlink, "missing"),
    ("00001.json", truncate, "damaged"),
    ("00001.json", lambda path: path.write_text("[]"), "damaged"),
    ("00001.json", lambda path: path.write_text('{"key": "key"}'), "damaged"),
    ("00001.json", lambda path: path.write_bytes(b"\xff"), "damaged"),
]


@pytest.mark.parametrize(("name", "change", "state"), DAMAGE)
def test_damage_is_named_and_counts_as_missing(files, capfd, name, change, state):
    change(files.folder / name)
    assert not files.is_finished("00001")
    assert capfd.readouterr().err == f"warning: {files.folder / name} is {state}; shard 00001 counts as missing\n"


@pytest.mark.parametrize("name", ["00001.emb.npy", "00001.prompts.parquet"])
@pytest.mark.parametrize("change", [lambda path: path.write_bytes(path.read_bytes()[:9]), Path.unlink])
def test_a_file_that_cannot_be_read_is_an_error(files, name, change):
    change(files.folder / name)
    with pytest.raises(UserError, match=rf"{name}: cannot be read .*run the same command again to make it again"):
        files.array("00001", "emb") if "emb" in name else files.table("00001", "prompts")


def full(file, *arguments, **options) -> None:
    """Write something, and then be full."""
    if hasattr(file, "write"):
        file.write(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half(*arguments, **options) -> None:
    full(arguments[1])


@pytest.mark.parametrize(
    ("module", "function", "broken", "named"),
    [(np, "save", full, "00002.emb.npy"), (parquet, "write_table", half, "00002.prompts.parquet")],
)
def test_a_full_disk_leaves_nothing_half_written(files, monkeypatch, module, function, broken, named):
    monkeypatch.setattr(module, function, broken)
    with pytest.raises(ResultWriteError, match=rf"{named} cannot be written \(No space left on device\): free some"):
        files.save("00002", {"emb": ROWS}, {"prompts": pa.table({"id": ["d"]})})
    left = {path.name for path in files.folder.iterdir()} - set(FILES)
    assert left <= {"00002.emb.npy"} - {named}
    assert not files.is_finished("00002") and files.is_finished("00001")


def test_a_shard_is_missing_until_its_record_is_written(files, monkeypatch, capfd):
    """The record of the old content does not fit the new one."""
    old = read_json(files.folder / "00001.json")

    def fail(path: Path, content: object) -> None:
        raise ResultWriteError(path, "full")

    with monkeypatch.context() as patch:
        patch.setattr(shard_files, "write_json", fail)
        with pytest.raises(ResultWriteError):
            files.save("00001", {"emb": ROWS + 1}, {"prompts": pa.table({"id": ["a", "b", "c"]})})
        with pytest.raises(ResultWriteError):
            files.save("00002", {"emb": ROWS})
    assert read_json(files.folder / "00001.json") == old
    assert not files.is_finished("00001") and not files.is_finished("00002")
    assert "00002" not in capfd.readouterr().err


def test_a_loop_names_damage_once(files, capfd):
    """A shard that was made again is looked at again, and so is new damage."""
    is_finished = FinishedShards(files)
    assert is_finished("00001") and not is_finished("00002")
    for change in (flip, Path.unlink):
        change(files.folder / "00001.emb.npy")
        assert [is_finished("00001") for _ in range(3)] == [False] * 3
        assert capfd.readouterr().err.count("shard 00001 counts as missing") == 1
        files.save("00001", {"emb": ROWS})
        assert is_finished("00001")
    assert FinishedShards(ShardFolder(files.folder, "other"))("00001") is False
    files.save("00002", {"emb": ROWS})
    assert is_finished("00002")
