"""Question answering examples from the shipped set, files, the hub or a plugin. Main entry: `load_data()`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from latentwire.data.fingerprints import fingerprint
from latentwire.data.formats import question_rows
from latentwire.harness.assets import file_sha256, hub_commit
from latentwire.harness.errors import UserError, first_line
from latentwire.harness.registry import Registry
from latentwire.harness.results import JsonObject

F = TypeVar("F", bound="Callable[[DataSpec], Sequence[Part]]")
Rows = Iterable[tuple[str, JsonObject]]  # the place of each row, for messages, and the row
Part = tuple[str, Rows]  # a name for messages, and rows
HALVES = ("select", "confirm")  # halves of the passages: one to choose a transform on, one to confirm the choice
PARTS = ("all", *HALVES)


@dataclass
class DataSpec:
    """Data set of examples; the `data` node of the config.

    `origin` determines which other fields are used. `short_qa` uses none. `file` uses path, and shots_path if the shots
    come from another file. `hub` uses repo, config, revision, shots_split and split.
    """

    name: str
    origin: str
    path: str = ""
    shots_path: str = ""
    repo: str = ""
    config: str = ""
    revision: str = "main"
    shots_split: str = "train"
    split: str = "validation"

    def identity(self) -> JsonObject:
        """Return the identity of the data for a config hash: the sha256 of the files, or the hub commit.

        Of a reader of a plugin it also has the digest of its module and every field that it may read.

        Raises:
            UserError: No reader has the name `origin`, or a file is missing or not readable.
        """
        found = reader_of(self).identity(self)
        plugins = READERS.plugin_sources([self.origin])
        if not plugins:
            return found
        named = ("name", "path", "shots_path")  # the names do not matter, the content of the files does
        fields = {key: value for key, value in vars(self).items() if key not in named}
        return {**fields, **found, "plugins": plugins}

    def files(self) -> list[Path]:
        """Return the files `shots_path`, if given, and `path`.

        Raises:
            UserError: A file is missing or not readable.
        """
        if not self.path:
            raise UserError(f"data={self.origin}: no path given; add path=FILE")
        names = [self.shots_path, self.path] if self.shots_path else [self.path]
        for name in names:
            file = Path(name).expanduser()
            if file.is_dir():
                raise UserError(f"data file {name}: is a folder; give a file in it")
            if not file.is_file():
                raise UserError(f"data file {name}: no such file; check the spelling and the folder you are in")
            if not os.access(file, os.R_OK):
                raise UserError(f"data file {name}: no permission to read it; change its permissions")
        return [Path(name).expanduser() for name in names]


@dataclass(frozen=True)
class DataReader:
    """A way to read data sets, chosen by `data.origin`.

    Attributes:
        define: Returns the parts of a data set. One part gives shots and evaluated examples; of two, the first gives
            the shots.
        identity: Returns what decides the content of a data set.
    """

    define: Callable[[DataSpec], Sequence[Part]]
    identity: Callable[[DataSpec], JsonObject]


def _node(name: str, reader: DataReader) -> JsonObject:
    """Return the config of data=NAME for a reader without a file in conf/data."""
    paths = {"path": "${path}", "shots_path": "${shots_path}"}
    return {"path": "", "shots_path": "", "data": {"name": name, "origin": name, **paths}}


READERS: Registry[DataReader] = Registry("data reader", "data", _node)


def reader_of(spec: DataSpec) -> DataReader:
    """Return the reader of a data set.

    Raises:
        UserError: No reader has the name `spec.origin`.
    """
    if spec.origin not in READERS:
        raise UserError(f"data.origin={spec.origin}: unknown; use one of {', '.join(READERS)}")
    return READERS[spec.origin]


def file_identity(spec: DataSpec) -> JsonObject:
    """Return the sha256 of the files of a data set, of the file for the shots first."""
    return {"sha256": [file_sha256(path) for path in spec.files()] if spec.path else []}


def register_reader(name: str, identity: Callable[[DataSpec], JsonObject] = file_identity) -> Callable[[F], F]:
    """Return a decorator that registers `function(spec) -> parts` as a reader of data sets.

    A part is a name for messages and an iterable of places and rows. A place, such as "line 3", is for messages, and
    the id of a row without one. A row has context, question and answers, as in SQuAD.

    Args:
        name: Name of the reader, for data=NAME and data.origin=NAME.
        identity: Function that returns what decides the content of a data set. The default is for data in the files
            `path` and `shots_path`.
    """

    def register(function: F) -> F:
        READERS.add(name, DataReader(function, identity))
        return function

    return register


@dataclass(frozen=True)
class Example:
    """A passage, a question about it and the reference answers."""

    id: str
    context: str
    question: str
    answers: tuple[str, ...]


@dataclass
class Dataset:
    """Examples for shots, examples to score, and the number of rows left out of both, by reason."""

    train: list[Example]
    validation: list[Example]
    left_out: Counter[str] = field(default_factory=Counter)


def shipped_split_path(split: str) -> Path:
    """Return the path of a split (train, validation) of short_qa, the set that ships with the project."""
    return Path(__file__).parent / "short_qa" / f"{split}.json"


def load_data(spec: DataSpec) -> Dataset:
    """Return the examples of a data set.

    Raises:
        UserError: The data are missing, empty, in another format or faulty. The message gives the place.
    """
    left_out: Counter[str] = Counter()
    reader = reader_of(spec)
    try:
        splits = [_to_examples(rows, name, left_out) for name, rows in reader.define(spec)]
    except UserError:
        raise
    except Exception as error:  # a plugin's bug is the user's to fix, and a bug of this project has a traceback
        if READERS.source_digest(spec.origin) is None:
            raise
        raise UserError(
            f"data={spec.name}: the reader raises {type(error).__name__} ({error}); fix "
            f"{reader.define.__module__}.{reader.define.__qualname__}"
        ) from error
    if len(splits) not in (1, 2):
        raise UserError(f"data={spec.name}: the reader gives {len(splits)} parts; return one, or shots and examples")
    return Dataset(train=splits[0], validation=splits[-1], left_out=left_out)


def choose_examples(
    data: Dataset, samples: int, shots: int, questions_per_shot: int, seed: int
) -> tuple[list[list[Example]], list[Example]]:
    """Draw the shots and the examples to score. Both depend only on the data and the seed.

    The examples of a smaller `samples` are the first of a larger one.

    Args:
        data: Examples to draw from.
        samples: Number of examples to score.
        shots: Number of shots. A shot is a passage with some of its questions.
        questions_per_shot: Largest number of questions of a shot.
        seed: Seed of the draw.

    Returns:
        The examples of each of `shots` shots, and `samples` examples to score.

    Raises:
        UserError: A number is too small, or the data have too few passages or examples.
    """
    shown, candidates = draw_examples(data, shots, questions_per_shot, seed)
    return shown, first_examples(candidates, samples)


def draw_examples(
    data: Dataset, shots: int, questions_per_shot: int, seed: int, shots_seed: int | None = None, part: str = "all"
) -> tuple[list[list[Example]], list[Example]]:
    """Draw the shots, and put all examples that may be scored in random order.

    The shots depend on `shots_seed`, and come from the passages of both halves. So both parts have the same shots,
    whose passages are in neither. The order of the examples depends on `seed` alone.

    Args:
        data: Examples to draw from.
        shots: Number of shots.
        questions_per_shot: Largest number of questions of a shot.
        seed: Seed of the examples.
        shots_seed: Seed of the shots; None: `seed`.
        part: Part of the examples, one of `PARTS`.

    Returns:
        The examples of each of `shots` shots, and the examples whose passages are not of a shot.

    Raises:
        UserError: A number is too small, or the data have too few passages.
    """
    for name, value, minimum in (("shots", shots, 0), ("questions_per_shot", questions_per_shot, 1)):
        if value < minimum:
            raise UserError(f"{name}={value}: at least {minimum} is needed")
    passages: dict[str, list[Example]] = {}
    for example in data.train:
        passages.setdefault(example.context, []).append(example)
    if len(passages) < shots:
        raise UserError(f"shots={shots}: the data have only {len(passages)} passages for them; lower shots")
    contexts, generator = list(passages), torch.Generator().manual_seed(seed)
    places = torch.randperm(len(contexts), generator=generator)  # drawn in any case, so that `order` is the same
    if shots_seed not in (None, seed):
        places = torch.randperm(len(contexts), generator=torch.Generator().manual_seed(shots_seed))
    shot_contexts = [contexts[index] for index in places.tolist()[:shots]]
    order = torch.randperm(len(data.validation), generator=generator).tolist()
    shuffled = [data.validation[index] for index in order]
    candidates = [
        example
        for example in shuffled
        if example.context not in shot_contexts and part in ("all", half_of(example.context))
    ]
    return [passages[context][:questions_per_shot] for context in shot_contexts], candidates


def half_of(passage: str) -> str:
    """Return the half of a passage, one of `HALVES`. It depends only on the passage's words."""
    return HALVES[int(fingerprint(passage), 16) % 2]


def first_examples(candidates: list[Example], samples: int, part: str = "all") -> list[Example]:
    """Return the first `samples` examples; `part` is their part of the data, for messages.

    Raises:
        UserError: The number is below 1, or there are fewer examples.
    """
    if samples < 1:
        raise UserError(f"samples={samples}: at least 1 is needed")
    if samples > len(candidates):
        where = "the data have" if part == "all" else f"part={part}, half of the passages, has"
        raise UserError(
            f"samples={samples}: {where} only {len(candidates)} examples besides the shots' passages; "
            f"use samples={len(candidates)} or less, or more data"
        )
    return candidates[:samples]


def _to_examples(rows: Rows, name: str, left_out: Counter[str]) -> list[Example]:
    """Convert raw rows to examples. Unanswerable rows are left out and counted; faulty rows raise an error."""
    examples: list[Example] = []
    seen: set[str] = set()
    for place, row in rows:
        if not isinstance(row, dict):
            raise UserError(f"{name}, {place}: expected an object with context, question and answers, got "
                            f"{type(row).__name__}; fix that row")  # fmt: skip
        context, question = (_text(row, key, f"{name}, {place}") for key in ("context", "question"))
        identifier = place if row.get("id") is None else str(row["id"])
        if identifier in seen:
            raise UserError(f"{name}, {place}: the id {identifier!r} occurs twice; ids must differ")
        seen.add(identifier)
        answers = () if row.get("is_impossible") else _answer_texts(row.get("answers"), f"{name}, {place}")
        if not answers:
            left_out["unanswerable"] += 1
            continue
        for answer in answers:
            if answer not in context:
                raise UserError(
                    f"{name}, {place} (id {identifier}): the answer {answer!r} is not in its context; "
                    "fix the answer (case and spaces count) or remove the row"
                )
        examples.append(Example(identifier, context.strip(), question.strip(), answers))
    if not examples:
        reason = f" ({left_out['unanswerable']} unanswerable)" if left_out["unanswerable"] else ""
        raise UserError(f"{name}: has no question with an answer{reason}; give a file with answers")
    return examples


def _text(row: JsonObject, key: str, place: str) -> str:
    """Return a field of a row that must be a text."""
    value = row.get(key)
    if not isinstance(value, str) or not value.strip() or not _is_unicode(value):
        raise UserError(f"{place}: {key} is missing, empty or not a text; fix or remove that row")
    return value


def _is_unicode(text: str) -> bool:
    """Return whether a text has no lone surrogates, which no tokenizer accepts."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _answer_texts(answers: object, place: str) -> tuple[str, ...]:
    """Return the distinct answers, in order, of 'text', ['text', ...], {'text': [...]} or [{'text': ...}, ...]."""
    if isinstance(answers, dict):
        answers = answers.get("text")
    if isinstance(answers, str):
        answers = [answers]
    if answers is None or not isinstance(answers, Sequence):
        raise UserError(f"{place}: answers are missing or not a list; expected texts, or SQuAD's text and answer_start")
    texts: dict[str, None] = {}
    for answer in answers:
        text = answer.get("text") if isinstance(answer, dict) else answer
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{place}: an answer is empty or not a text; fix or remove that row")
        texts[text.strip()] = None
    return tuple(texts)


def _shipped_identity(spec: DataSpec) -> JsonObject:
    return {"sha256": [file_sha256(shipped_split_path(split)) for split in ("train", "validation")]}


@register_reader("short_qa", _shipped_identity)
def read_shipped(spec: DataSpec) -> list[Part]:
    """Return the two splits of short_qa."""
    paths = [shipped_split_path(split) for split in ("train", "validation")]
    return [(str(path), question_rows(path)) for path in paths]


@register_reader("file")
def read_file(spec: DataSpec) -> list[Part]:
    """Return the questions of SQuAD or JSONL files."""
    return [(str(path), question_rows(path)) for path in spec.files()]


def _hub_identity(spec: DataSpec) -> JsonObject:
    return {
        "repo": spec.repo,
        "config": spec.config,
        "commit": hub_commit(spec.repo, spec.revision, "dataset"),
        "splits": [spec.shots_split, spec.split],
    }


@register_reader("hub", _hub_identity)
def read_hub(spec: DataSpec) -> list[Part]:
    """Return two splits of a data set of the hub."""
    return [(f"{spec.repo} ({split})", _hub_rows(spec, split)) for split in (spec.shots_split, spec.split)]


def _hub_rows(spec: DataSpec, split: str) -> Iterator[tuple[str, JsonObject]]:
    import datasets

    try:
        if not spec.repo:
            raise ValueError("no repository given; set data.repo=ORG/NAME")
        commit = hub_commit(spec.repo, spec.revision, "dataset")
        rows = datasets.load_dataset(spec.repo, spec.config or None, revision=commit, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"data={spec.name}: {spec.repo} ({split}) could not be read from the hub ({first_line(error)}); check the "
            "name, the network and your login, or use data=short_qa, or data=file path=FILE"
        ) from error
    for number, row in enumerate(rows):
        yield f"row {number}", row
