"""Rows of a user's files: JSONL or a JSON array, gzipped or not, or Parquet.

Main entries: `file_rows()`, and `row_ranges()`, which cuts a file into pieces for it.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from itertools import accumulate, islice
from pathlib import Path
from typing import TYPE_CHECKING

from latentwire.harness.errors import UserError, first_line
from latentwire.harness.progress import log

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")  # of the files that a folder is read for
BLANK = b"\xef\xbb\xbf \t\r\n"  # a mark of UTF-8 text, and white space
BATCH = 1024  # rows of Parquet that are read at a time


@dataclass(frozen=True)
class BrokenRow:
    """A line that cannot be parsed."""

    text: str
    reason: str


@dataclass(frozen=True)
class RowRange:
    """Consecutive rows of a file.

    Attributes:
        path: The file.
        start: Number of the first row, from 0. Empty lines do not count.
        rows: Number of rows.
        offset: Position of the first row's line in the unpacked file, in bytes; 0 for a JSON array and for Parquet.
        line: Number of this line, from 1.
    """

    path: Path
    start: int
    rows: int
    offset: int = 0
    line: int = 1


def data_files(path: Path, setting: str) -> list[Path]:
    """Return the files with rows in a folder, in the order of their names. A file is returned alone.

    Hidden files are ignored, and other files are named in a note.

    Args:
        path: A folder or a file.
        setting: The setting that names it, for messages.

    Raises:
        UserError: The folder has no such file.
    """
    if not path.is_dir():
        return [path]
    visible = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    found = [file for file in visible if file.is_file() and file.name.endswith(ENDINGS)]
    if not found:
        raise UserError(f"{setting}={path}: the folder has no file with rows; give a folder with files that end in "
                        f"{', '.join(ENDINGS)}")  # fmt: skip
    if others := [file.name for file in visible if file not in set(found)]:
        log(f"note: {setting}={path}: files with another ending are ignored: {', '.join(others)}")
    return found


def file_rows(path: Path, setting: str = "path", part: RowRange | None = None) -> Iterator[tuple[str, object]]:
    """Yield (place, row) from a file in JSONL, a JSON array (gzipped or not) or Parquet.

    A line that is not valid JSON becomes a `BrokenRow`. A row may be any JSON value. Lines and batches are read one by
    one, but a JSON array is read whole.

    Args:
        path: The file.
        setting: The setting that names the file, for messages.
        part: Rows of this file to yield, without parsing those before; None yields all.

    Raises:
        UserError: The file is missing, unreadable, empty, or has another format.
    """
    name = f"{setting}={path}"
    rows = _parquet_rows(path, name, part) if _is_parquet(path, name) else _text_rows(path, name, part)
    empty = True
    for place, row in rows:
        empty = False
        yield place, row
    if empty:
        raise _without_rows(name)


def row_ranges(path: Path, most: int, setting: str = "path") -> list[RowRange]:
    """Return the rows of a file, cut into ranges of at most `most` rows. It parses no row of JSONL or Parquet.

    Args:
        path: The file.
        most: Largest number of rows in a range.
        setting: The setting that names the file, for messages.

    Raises:
        UserError: The file is missing, unreadable or empty.
    """
    name, lines = f"{setting}={path}", None
    if _is_parquet(path, name):
        with _parquet(path, name) as table:
            count = int(table.metadata.num_rows)
    else:
        with _unpacked(path, name) as file:
            if _is_array(file):
                count = sum(1 for _ in _array_rows(name, file.read()))
            else:
                count, lines = _line_starts(file, most)
    if not count:
        raise _without_rows(name)
    starts = range(0, count, most)
    places = lines or [(0, 1) for _ in starts]
    return [
        RowRange(path, start, min(most, count - start), offset, line)
        for start, (offset, line) in zip(starts, places, strict=True)
    ]


def _without_rows(name: str) -> UserError:
    return UserError(f"{name}: the file has no rows; give a JSONL, JSON or Parquet file with rows")


def _is_parquet(path: Path, name: str) -> bool:
    """Return whether a file is in Parquet, by its first bytes."""
    if path.is_dir() or not path.is_file():
        raise UserError(f"{name}: {'is a folder' if path.is_dir() else 'no such file'}; give a JSONL, JSON or "
                        "Parquet file")  # fmt: skip
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


@contextmanager
def _unpacked(path: Path, name: str) -> Iterator[BufferedIOBase]:
    """Open a file, through gzip if it is packed."""
    with path.open("rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path, "rb") if is_packed else path.open("rb") as file:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{name}: a damaged gzip file ({error}); fetch or write it again") from error


def _is_array(file: BufferedIOBase) -> bool:
    """Return whether a file begins like a JSON array, and go back to its beginning."""
    first = b""
    while not first.strip(BLANK) and (first := file.readline()):
        pass
    file.seek(0)
    return first.lstrip(b"\xef\xbb\xbf \t").startswith(b"[")


def _text_rows(path: Path, name: str, part: RowRange | None) -> Iterator[tuple[str, object]]:
    with _unpacked(path, name) as file:
        if _is_array(file):
            rows = _array_rows(name, file.read())
            yield from rows if part is None else islice(rows, part.start, part.start + part.rows)
        elif part is None:
            yield from _lines(file)
        else:
            file.seek(part.offset)
            yield from islice(_lines(file, part.line), part.rows)


def _lines(file: Iterable[bytes], first: int = 1) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(file, first):
        if not line.strip(BLANK):
            continue
        try:
            yield f"line {number}", json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            text = line.decode("utf-8", errors="backslashreplace")
            yield f"line {number}", BrokenRow(text.rstrip("\r\n"), "is not UTF-8 text")
        except (ValueError, RecursionError):
            yield f"line {number}", BrokenRow(line.decode("utf-8-sig").rstrip("\r\n"), "is not valid JSON")


def _line_starts(file: Iterable[bytes], most: int) -> tuple[int, list[tuple[int, int]]]:
    """Return the number of rows, and the offset and number of the line of every `most`-th row."""
    count, offset, starts = 0, 0, []
    for number, line in enumerate(file, 1):
        if line.strip(BLANK):
            if count % most == 0:
                starts.append((offset, number))
            count += 1
        offset += len(line)
    return count, starts


def _array_rows(name: str, raw: bytes) -> Iterator[tuple[str, object]]:
    try:
        rows = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{name}: begins like a JSON array but is not valid JSON ({error}); fix it, or write one row a line"
        ) from error
    for number, row in enumerate(rows):
        yield f"row {number}", row


@contextmanager
def _parquet(path: Path, name: str) -> Iterator[ParquetFile]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path, memory_map=True) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{name}: a damaged Parquet file ({first_line(error)}); fetch or write it again") from error


def _parquet_rows(path: Path, name: str, part: RowRange | None) -> Iterator[tuple[str, object]]:
    with _parquet(path, name) as file:
        first, end = (0, file.metadata.num_rows) if part is None else (part.start, part.start + part.rows)
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        ends = list(accumulate(sizes))
        groups = [group for group, last in enumerate(ends) if last > first and last - sizes[group] < end]
        number = ends[groups[0]] - sizes[groups[0]] if groups else 0  # of the next row
        for batch in file.iter_batches(BATCH, groups):
            if number >= end:
                break
            wanted = batch.slice(max(first - number, 0), max(end - max(number, first), 0))
            for place, row in enumerate(wanted.to_pylist(), max(number, first)):
                yield f"row {place}", row
            number += len(batch)
