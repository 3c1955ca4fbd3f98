"""Results as JSON files, keyed by a hash of what produced them; written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from latentwire.harness.errors import UserError

Result = dict[str, Any]


class ResultWriteError(UserError):
    """A file cannot be written; going on would lose what is computed next. `setting` says how to write elsewhere."""

    def __init__(self, path: Path, reason: str, setting: str = "out=FOLDER") -> None:
        super().__init__(path, reason, setting)
        self.path, self.reason, self.setting = path, reason, setting

    def __str__(self) -> str:
        return (
            f"{self.path} cannot be written ({self.reason}): free some space or choose another folder with "
            f"{self.setting}, then run the same command again; what is finished is kept"
        )


class DamagedResultError(UserError):
    """A result file that cannot be read; it is left as it is."""


def config_hash(identity: Any) -> str:
    """Return the sha256 of a plain structure (dicts, lists, numbers, strings), 16 hexadecimal digits."""
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Return the sha256 of a small file, 16 hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what goes wrong while `path` is written into a message for the user."""
    try:
        yield
    except OSError as error:
        raise ResultWriteError(path, error.strerror or str(error)) from error


@contextlib.contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a file that is there whole after the block, or not at all: temporary file beside it, fsync, rename.

    Raises:
        ResultWriteError: The folder is not writable, or the disk is full.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            with writing(path):
                file.flush()
                os.fsync(file.fileno())
                os.fchmod(file.fileno(), 0o666 & ~_umask())
        with writing(path):
            Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        ResultWriteError: The folder is not writable, or the disk is full.
    """
    write_lines_atomically(path, [text])


def write_lines_atomically(path: Path, lines: Iterable[str]) -> None:
    """Write texts one after the other into a file that is there whole or not at all; ends of lines are theirs.

    Raises:
        ResultWriteError: The folder is not writable, or the disk is full.
    """
    with open_atomically(path) as file:
        for line in lines:
            with writing(path):
                file.write(line.encode())


def _umask() -> int:
    """Return the umask; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; NaN and infinity are refused, being no JSON."""
    write_text_atomically(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    write_lines_atomically(path, (json_line(row) for row in rows))


def json_line(row: dict[str, Any]) -> str:
    """Return a row as it stands in a JSONL file, with its end of line."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """Read a JSON file of ours.

    Raises:
        DamagedResultError: It is not JSON; says where, and what to do.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise DamagedResultError(
            f"{path} is not readable as JSON ({error}): restore it, or delete it to run that configuration again"
        ) from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read the predictions of a result: all rows of `numbered_rows`."""
    remedy = "restore the file, or delete it to run that configuration again"
    return [row for _, row in numbered_rows(path, remedy)]


def numbered_rows(path: Path, remedy: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a JSONL file with the numbers of their lines, from 1; empty lines are passed over.

    Args:
        path: The file.
        remedy: What the user is to do about a damaged one.

    Raises:
        DamagedResultError: A line is no UTF-8 text, no JSON or no object; says which.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise DamagedResultError(
                    f"{path}, line {number}, is no UTF-8 text ({error.reason}): {remedy}"
                ) from error
            except ValueError as error:
                raise DamagedResultError(
                    f"{path}, line {number}, is not readable as JSON ({error}): {remedy}"
                ) from error
            if not isinstance(row, dict):
                raise DamagedResultError(f"{path}, line {number}, is no JSON object: {remedy}")
            yield number, row


def truncate_jsonl(path: Path, step: int) -> None:
    """Keep the rows of a JSONL file up to and with `step`; a last line that was being written goes too."""
    if not path.is_file():
        return
    whole = path.read_bytes()
    if whole and not whole.endswith(b"\n"):
        write_lines_atomically(path, [whole[: whole.rfind(b"\n") + 1].decode("utf-8")])
    remedy = "delete it; the run writes the rest of it anew"
    write_jsonl(path, [row for _, row in numbered_rows(path, remedy) if row["step"] <= step])


class ResultStore:
    """The folder of a sweep: `<name>.json` with its predictions beside it in `<name>.predictions.jsonl`.

    A result of another configuration under the same name is moved to `replaced/` before it is overwritten,
    and taken back from there when its configuration is asked for again: nothing finished is lost.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """Return where the result called `name` lies."""
        return self.folder / f"{name}.json"

    def predictions_path(self, name: str) -> Path:
        """Return where the predictions of the result called `name` lie."""
        return self.folder / f"{name}.predictions.jsonl"

    def finished(self, name: str, key: str) -> Result | None:
        """Return the finished result of this name and hash, or None.

        Raises:
            DamagedResultError: There is a file of that name that cannot be read.
        """
        for path in (self.path(name), self._replaced(self.path(name), key)):
            if not path.exists():
                continue
            result = read_json(path)
            if not isinstance(result, dict) or not {"config_hash", "status"} <= result.keys():
                raise DamagedResultError(
                    f"{path} is no result of this project (it has no config_hash or status): "
                    "move it away, or delete it to run that configuration again"
                )
            predictions = path.with_name(f"{path.stem}.predictions.jsonl")
            if result["config_hash"] != key or result["status"] != "ok" or not predictions.exists():
                continue
            rows = len(read_jsonl(predictions))
            if rows != result.get("num_samples", rows):
                raise DamagedResultError(
                    f"{predictions} holds {rows} and not the {result['num_samples']} rows of its "
                    f"result: restore it, or delete {path} to run that configuration again"
                )
            if path != self.path(name):
                self._set_aside(name)
                with writing(path):
                    predictions.replace(self.predictions_path(name))
                    path.replace(self.path(name))
            return result
        return None

    def save(self, name: str, result: Result, predictions: Iterable[dict[str, Any]] | None) -> None:
        """Write the predictions, then the result: a result that is there is complete.

        One that has grown is kept in `replaced/` until the new one is whole.
        """
        if self.path(name).exists() and not self._gives_way(name, result):
            self._set_aside(name)
        if predictions is not None:
            write_jsonl(self.predictions_path(name), predictions)
        write_json(self.path(name), result)
        shorter = self._replaced(self.path(name), str(result["config_hash"]))
        if result["status"] == "ok" and shorter.exists():
            shorter.unlink()
            shorter.with_name(f"{shorter.stem}.predictions.jsonl").unlink(missing_ok=True)

    def sweep_up(self) -> None:
        """Remove temporary files that a killed run left in the folder."""
        for leftover in self.folder.glob(".*.json*.*.tmp"):
            leftover.unlink(missing_ok=True)

    def save_summary(self, summary: dict[str, Any]) -> Path | None:
        """Write summary.json; where it covers less than the one that is there, keep that one too.

        Returns:
            Where the other summary was moved, or None.
        """
        path = self.folder / "summary.json"
        moved = None
        if path.exists():
            covered = _covered(_read_or(path, None))
            if not covered or covered - _covered(summary):
                moved = self._replaced(path, file_digest(path))
                with writing(moved):
                    moved.parent.mkdir(parents=True, exist_ok=True)
                    path.replace(moved)
        write_json(path, summary)
        return moved

    def require_writable(self) -> None:
        """Fail now if the folder cannot be written, not after the first result was computed.

        Raises:
            ResultWriteError: It cannot.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass

    def _gives_way(self, name: str, new: Result) -> bool:
        """Tell whether the result called `name` is of the same configuration and no better than the new one."""
        old = _read_or(self.path(name), {})
        same = isinstance(old, dict) and old.get("config_hash") == new["config_hash"]
        grown = same and old.get("num_samples") != new.get("num_samples")
        return same and (old.get("status") != "ok" or (new["status"] == "ok" and not grown))

    def _key(self, name: str) -> str:
        """Return the hash of the result called `name`, whatever state it is in."""
        result = _read_or(self.path(name), "damaged")
        if isinstance(result, dict):
            return str(result.get("config_hash", "foreign"))
        return "damaged" if result == "damaged" else "foreign"

    def _set_aside(self, name: str) -> None:
        """Move a finished result of another configuration out of the way."""
        path = self.path(name)
        if not path.exists():
            return
        target = self._replaced(path, self._key(name))
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            if self.predictions_path(name).exists():
                self.predictions_path(name).replace(target.with_name(f"{target.stem}.predictions.jsonl"))
            path.replace(target)

    @staticmethod
    def _replaced(path: Path, key: str) -> Path:
        return path.parent / "replaced" / f"{path.stem}.{key}.json"


def _read_or(path: Path, otherwise: Any) -> Any:
    """Read a JSON file that is about to be replaced; a damaged one gives `otherwise`."""
    try:
        return read_json(path)
    except DamagedResultError:
        return otherwise


def _covered(summary: Any) -> set[tuple[str, str]]:
    """Return names and hashes of the results in a summary; nothing for what is no summary."""
    results = summary.get("results") if isinstance(summary, dict) else None
    if not isinstance(results, list):
        return set()
    return {(str(r.get("name")), str(r.get("config_hash"))) for r in results if isinstance(r, dict)}
