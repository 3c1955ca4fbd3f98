"""Rows of a user's file: JSONL or a JSON array, gzipped or not, or Parquet. Main entry: `file_rows()`."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from latentwire.harness.errors import UserError, first_line
from latentwire.harness.results import JsonObject


@dataclass(frozen=True)
class BrokenRow:
    """A line that cannot be parsed."""

    text: str
    reason: str


def file_rows(path: Path, setting: str = "path") -> Iterator[tuple[str, object]]:
    """Yield (place, row) from a file in JSONL, a JSON array (gzipped or not) or Parquet.

    A line that is not valid JSON becomes a `BrokenRow`. A row may be any JSON value.

    Args:
        path: The file.
        setting: The setting that names the file, for messages.

    Raises:
        UserError: The file is missing, unreadable, empty, or has another format.
    """
    name = f"{setting}={path}"
    if path.is_dir() or not path.is_file():
        raise UserError(f"{name}: {'is a folder' if path.is_dir() else 'no such file'}; give a JSONL, JSON or "
                        "Parquet file")  # fmt: skip
    with path.open("rb") as file:
        head = file.read(4)
    if head == b"PAR1":
        yield from _parquet_rows(path, name)
        return
    empty = True
    try:
        with gzip.open(path, "rb") if head[:2] == b"\x1f\x8b" else path.open("rb") as file:
            first = b""
            while not first.strip(b"\xef\xbb\xbf \t\r\n") and (first := file.readline()):
                pass
            file.seek(0)
            if first.lstrip(b"\xef\xbb\xbf \t").startswith(b"["):
                lines: Iterable[tuple[str, object]] = _array_rows(name, file.read())
            else:
                lines = _lines(file)
            for place, row in lines:
                empty = False
                yield place, row
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{name}: a damaged gzip file ({error}); fetch or write it again") from error
    if empty:
        raise UserError(f"{name}: the file has no rows; give a JSONL, JSON or Parquet file with rows")


def _lines(file: Iterable[bytes]) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(file, 1):
        if not line.strip(b"\xef\xbb\xbf \t\r\n"):
            continue
        try:
            yield f"line {number}", json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            text = line.decode("utf-8", errors="backslashreplace")
            yield f"line {number}", BrokenRow(text.rstrip("\r\n"), "is not UTF-8 text")
        except (ValueError, RecursionError):
            yield f"line {number}", BrokenRow(line.decode("utf-8-sig").rstrip("\r\n"), "is not valid JSON")


def _array_rows(name: str, raw: bytes) -> Iterator[tuple[str, object]]:
    try:
        rows = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{name}: begins like a JSON array but is not valid JSON ({error}); fix it, or write one row a line"
        ) from error
    for number, row in enumerate(rows):
        yield f"row {number}", row


def _parquet_rows(path: Path, name: str) -> Iterator[tuple[str, JsonObject]]:
    import datasets
    import pyarrow

    try:
        rows = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        for number, row in enumerate(rows):
            yield f"row {number}", row
    except (pyarrow.ArrowException, OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{name}: a damaged Parquet file ({first_line(error)}); fetch or write it again") from error
