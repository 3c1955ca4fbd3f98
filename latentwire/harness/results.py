"""Results as JSON files, written completely or not at all. Main entries: `ResultStore`, `config_hash()`."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, TypedDict

from latentwire.harness.errors import UserError

FORMAT = 2  # of results, summaries and training results; 0.2.0 and earlier wrote format 1, without a number

JsonObject = dict[str, object]  # a JSON object whose fields its writer decides, such as a config
Result = JsonObject


class MadeBy(TypedDict):
    """The code that made a file."""

    versions: dict[str, str]
    git_commit: str | None


class MadeOn(MadeBy):
    """The code and the machine that made a file."""

    device: str
    processes: int


class ResultWriteError(UserError):
    """A file cannot be written. `setting` is the setting that chooses another folder."""

    def __init__(self, path: Path, reason: str, setting: str = "out=FOLDER") -> None:
        super().__init__(path, reason, setting)
        self.path, self.reason, self.setting = path, reason, setting

    def __str__(self) -> str:
        return (
            f"{self.path} cannot be written ({self.reason}): free some space or choose another folder with "
            f"{self.setting}, then run the same command again; finished results are kept"
        )


class DamagedResultError(UserError):
    """A result file cannot be read. The file is kept unchanged."""


def config_hash(identity: object) -> str:
    """Return 16 hexadecimal digits of the sha256 of a plain structure: dicts, lists, numbers, strings."""
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Return 16 hexadecimal digits of the sha256 of a small file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise an OSError of the `with` block as a ResultWriteError that names `path`."""
    try:
        yield
    except OSError as error:
        raise ResultWriteError(path, error.strerror or str(error)) from error


@contextlib.contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a file that is complete after the block, or unchanged: temporary file, fsync, rename.

    Raises:
        ResultWriteError: The folder is not writable, or the disk is full.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file, temporary = _temporary_file(path)
    try:
        yield file
        with writing(path):
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            temporary.replace(path)
            file.close()
    except BaseException:
        with contextlib.suppress(OSError):  # closing writes what is left, to a disk that may be full
            file.close()
        temporary.unlink(missing_ok=True)
        raise


def _temporary_file(path: Path) -> tuple[BinaryIO, Path]:
    """Return a new temporary file next to a path. It is locked while it is open, so that `sweep_up` leaves it alone."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return os.fdopen(handle, "wb"), Path(name)
        os.close(handle)  # another process took it for abandoned before it was locked


def sweep_up(folder: Path, pattern: str = ".*.tmp") -> None:
    """Remove temporary files of killed processes from a folder; a file that a process has open stays."""
    for leftover in folder.glob(pattern):
        with contextlib.suppress(OSError), leftover.open("rb") as file:  # gone already, in use, or without locks
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text file completely or not at all.

    Raises:
        ResultWriteError: The folder is not writable, or the disk is full.
    """
    write_lines_atomically(path, [text])


def write_lines_atomically(path: Path, lines: Iterable[str]) -> None:
    """Write texts one after the other to a file, completely or not at all. The texts include their line ends.

    Raises:
        ResultWriteError: The folder is not writable, or the disk is full.
    """
    with open_atomically(path) as file:
        for line in lines:
            with writing(path):
                file.write(line.encode())


def _umask() -> int:
    """Return the umask. Only setting it returns its value, so it is set and restored."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, content: object) -> None:
    """Write JSON completely or not at all.

    Raises:
        ValueError: A number is NaN or infinite, which JSON does not have.
    """
    write_text_atomically(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write one JSON object per line, completely or not at all."""
    write_lines_atomically(path, (json_line(row) for row in rows))


def json_line(row: Mapping[str, object]) -> str:
    """Return a row as a line of a JSONL file, with its line end."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> object:
    """Return the content of a JSON file of this project.

    Raises:
        DamagedResultError: The file is not JSON.
    """
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise DamagedResultError(
            f"{path} is not readable as JSON ({error}): restore it, or delete it to run that configuration again"
        ) from error
    return content


def read_jsonl(path: Path) -> list[JsonObject]:
    """Return all rows of a JSONL file, such as the predictions of a result."""
    remedy = "restore the file, or delete it to run that configuration again"
    lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
    if all(line.startswith(b"{") and line.rstrip().endswith(b"}") for line in lines):
        with contextlib.suppress(ValueError):  # the loop below names the line
            rows: list[JsonObject] = json.loads(b"[" + b",".join(lines) + b"]")  # all at once, so that rows share keys
            if len(rows) == len(lines) and all(isinstance(row, dict) for row in rows):
                return rows
    return [row for _, row in numbered_rows(path, remedy)]


def numbered_rows(path: Path, remedy: str) -> Iterator[tuple[int, JsonObject]]:
    """Yield the line number, from 1, and the object of each line of a JSONL file. Empty lines are skipped.

    Args:
        path: JSONL file.
        remedy: End of the error message: how to repair a damaged file.

    Raises:
        DamagedResultError: A line is not UTF-8 text, not JSON or not an object. The message gives its number.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise DamagedResultError(
                    f"{path}, line {number}, is not UTF-8 text ({error.reason}): {remedy}"
                ) from error
            except ValueError as error:
                raise DamagedResultError(
                    f"{path}, line {number}, is not readable as JSON ({error}): {remedy}"
                ) from error
            if not isinstance(row, dict):
                raise DamagedResultError(f"{path}, line {number}, is not a JSON object: {remedy}")
            yield number, row


def truncate_jsonl(path: Path, step: int) -> None:
    """Remove the rows of a JSONL file after `step`, and a last line that was not completely written.

    Raises:
        DamagedResultError: A line cannot be read or has no step.
    """
    if not path.is_file():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        write_lines_atomically(path, [content[: content.rfind(b"\n") + 1].decode("utf-8")])
    remedy = "delete it; the run then writes only its later rows"
    kept = []
    for number, row in numbered_rows(path, remedy):
        at = row.get("step")
        if not isinstance(at, int):
            raise DamagedResultError(f"{path}, line {number}, has no step: {remedy}")
        if at <= step:
            kept.append(row)
    write_jsonl(path, kept)


class ResultStore:
    """The results of a sweep in a folder: `<name>.json` and its predictions, `<name>.predictions.jsonl`.

    No finished result is lost. An old result of another configuration moves to `replaced/` before a new one takes its
    name. It moves back when its configuration is run again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """Return the path of the result called `name`."""
        return self.folder / f"{name}.json"

    def predictions_path(self, name: str) -> Path:
        """Return the path of the predictions of the result called `name`."""
        return self.folder / f"{name}.predictions.jsonl"

    def finished(self, name: str, key: str) -> Result | None:
        """Return the finished result with this name and config hash, or None.

        Raises:
            DamagedResultError: A file with that name cannot be read, or its predictions are incomplete.
        """
        for path in (self.path(name), self._replaced_path(self.path(name), key)):
            if not path.exists():
                continue
            result = read_json(path)
            if not isinstance(result, dict) or not {"config_hash", "status"} <= result.keys():
                raise DamagedResultError(
                    f"{path} is not a result of this project (it has no config_hash or status): "
                    "move it away, or delete it to run that configuration again"
                )
            predictions = path.with_name(f"{path.stem}.predictions.jsonl")
            if result["config_hash"] != key or result["status"] != "ok" or not predictions.exists():
                continue
            rows = len(read_jsonl(predictions))
            if rows != result.get("num_samples", rows):
                raise DamagedResultError(
                    f"{predictions} has {rows} rows, but its result has num_samples={result['num_samples']}: "
                    f"restore it, or delete {path} to run that configuration again"
                )
            if path != self.path(name):
                self._move_to_replaced(name)
                with writing(path):
                    predictions.replace(self.predictions_path(name))
                    path.replace(self.path(name))
            return result
        return None

    def save(self, name: str, result: Mapping[str, object], predictions: Iterable[Mapping[str, object]] | None) -> None:
        """Write the predictions, then the result, so that an existing result file is complete.

        An old result with another number of examples stays in `replaced/` until the new one is written.

        Args:
            name: Name of the result.
            result: Result with `config_hash` and `status`.
            predictions: Rows of the predictions; None writes no predictions.

        Raises:
            ResultWriteError: The folder is not writable, or the disk is full.
        """
        if self.path(name).exists() and not self._may_overwrite(name, result):
            self._move_to_replaced(name)
        if predictions is not None:
            write_jsonl(self.predictions_path(name), predictions)
        write_json(self.path(name), result)
        old = self._replaced_path(self.path(name), str(result["config_hash"]))
        if result["status"] == "ok" and old.exists():
            old.unlink()
            old.with_name(f"{old.stem}.predictions.jsonl").unlink(missing_ok=True)

    def save_summary(self, summary: Mapping[str, object]) -> Path | None:
        """Write summary.json. If the old summary covers a result that the new one lacks, move it to `replaced/`.

        Returns:
            New path of the old summary, or None if it was overwritten or missing.
        """
        path = self.folder / "summary.json"
        moved = None
        if path.exists():
            covered = _covered_results(_read_or_default(path, None))
            if not covered or covered - _covered_results(summary):
                moved = self._replaced_path(path, file_digest(path))
                with writing(moved):
                    moved.parent.mkdir(parents=True, exist_ok=True)
                    path.replace(moved)
        write_json(path, summary)
        return moved

    def require_writable(self) -> None:
        """Check that the folder can be written, before the first result is computed.

        Raises:
            ResultWriteError: The folder cannot be written.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass

    def _may_overwrite(self, name: str, new: Mapping[str, object]) -> bool:
        """Return whether the old result has the same configuration as the new one and nothing that it lacks."""
        old = _read_or_default(self.path(name), {})
        if not isinstance(old, dict) or old.get("config_hash") != new["config_hash"]:
            return False
        grown = old.get("num_samples") != new.get("num_samples")
        return old.get("status") != "ok" or (new["status"] == "ok" and not grown)

    def _key(self, name: str) -> str:
        """Return the config hash of the result called `name`, or 'damaged' or 'foreign'."""
        result = _read_or_default(self.path(name), "damaged")
        if isinstance(result, dict):
            return str(result.get("config_hash", "foreign"))
        return "damaged" if result == "damaged" else "foreign"

    def _move_to_replaced(self, name: str) -> None:
        """Move the result called `name` and its predictions to `replaced/`."""
        path = self.path(name)
        if not path.exists():
            return
        target = self._replaced_path(path, self._key(name))
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            if self.predictions_path(name).exists():
                self.predictions_path(name).replace(target.with_name(f"{target.stem}.predictions.jsonl"))
            path.replace(target)

    @staticmethod
    def _replaced_path(path: Path, key: str) -> Path:
        return path.parent / "replaced" / f"{path.stem}.{key}.json"


def _read_or_default(path: Path, default: object) -> object:
    """Return the content of a JSON file, or `default` if the file is damaged."""
    try:
        return read_json(path)
    except DamagedResultError:
        return default


def _covered_results(summary: object) -> set[tuple[str, str]]:
    """Return the name and the config hash of each result in a summary; an empty set for other content."""
    results = summary.get("results") if isinstance(summary, dict) else None
    if not isinstance(results, list):
        return set()
    return {(str(r.get("name")), str(r.get("config_hash"))) for r in results if isinstance(r, dict)}
