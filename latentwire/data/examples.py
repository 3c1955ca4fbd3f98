"""Question answering examples from the shipped set, a SQuAD file or the hub. Main entry: `load_data()`."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from latentwire.harness.assets import file_sha256, hub_commit
from latentwire.harness.errors import UserError, first_line

ORIGINS = ("short_qa", "file", "hub")


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

    def identity(self) -> dict[str, Any]:
        """Return the identity of the data for a config hash: the sha256 of the files, or the hub commit."""
        if self.origin == "hub":
            return {
                "repo": self.repo,
                "config": self.config,
                "commit": hub_commit(self.repo, self.revision, "dataset"),
                "splits": [self.shots_split, self.split],
            }
        return {"sha256": [file_sha256(path) for path in self.files()]}

    def files(self) -> list[Path]:
        """Return the paths of the files, with the file of the shots first.

        Raises:
            UserError: A file is missing or not readable.
        """
        if self.origin == "short_qa":
            return [shipped_split_path("train"), shipped_split_path("validation")]
        if not self.path:
            raise UserError("data=file: no path given; add path=FILE (SQuAD JSON, .json.gz, or JSONL)")
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
    if spec.origin not in ORIGINS:
        raise UserError(f"data.origin={spec.origin}: unknown; use one of {', '.join(ORIGINS)}")
    left_out: Counter[str] = Counter()
    if spec.origin == "hub":
        splits = [_to_examples(_hub_rows(spec, split), f"{spec.repo} ({split})", left_out)
                  for split in (spec.shots_split, spec.split)]  # fmt: skip
    else:
        splits = [_to_examples(_file_rows(path), str(path), left_out) for path in spec.files()]
    return Dataset(train=splits[0], validation=splits[-1], left_out=left_out)


def choose_examples(
    data: Dataset, samples: int, shots: int, questions_per_shot: int, seed: int
) -> tuple[list[list[Example]], list[Example]]:
    """Draw the shots and the examples to score. Both depend only on the data and the seed.

    No example to score has the passage of a shot. The examples of a smaller `samples` are the first of a larger one.

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
    for name, value, minimum in (
        ("samples", samples, 1),
        ("shots", shots, 0),
        ("questions_per_shot", questions_per_shot, 1),
    ):
        if value < minimum:
            raise UserError(f"{name}={value}: at least {minimum} is needed")
    passages: dict[str, list[Example]] = {}
    for example in data.train:
        passages.setdefault(example.context, []).append(example)
    if len(passages) < shots:
        raise UserError(f"shots={shots}: the data have only {len(passages)} passages for them; lower shots")
    generator = torch.Generator().manual_seed(seed)
    contexts = list(passages)
    shot_contexts = [contexts[index] for index in torch.randperm(len(contexts), generator=generator).tolist()[:shots]]
    order = torch.randperm(len(data.validation), generator=generator).tolist()
    candidates = [data.validation[index] for index in order if data.validation[index].context not in shot_contexts]
    if samples > len(candidates):
        raise UserError(
            f"samples={samples}: the data have only {len(candidates)} examples besides the shots' passages; "
            f"use samples={len(candidates)} or less, or more data"
        )
    return [passages[context][:questions_per_shot] for context in shot_contexts], candidates[:samples]


Row = dict[str, Any]


def _to_examples(rows: Iterable[tuple[str, Row]], name: str, left_out: Counter[str]) -> list[Example]:
    """Convert raw rows to examples. Unanswerable rows are left out and counted; faulty rows raise an error."""
    examples: list[Example] = []
    seen: set[str] = set()
    for place, row in rows:
        if not isinstance(row, dict):
            raise UserError(f"{name}, {place}: expected an object with context, question and answers, got "
                            f"{type(row).__name__}; fix that row")  # fmt: skip
        for key in ("context", "question"):
            if not isinstance(row.get(key), str) or not row[key].strip() or not _is_unicode(row[key]):
                raise UserError(f"{name}, {place}: {key} is missing, empty or not a text; fix or remove that row")
        identifier = place if row.get("id") is None else str(row["id"])
        if identifier in seen:
            raise UserError(f"{name}, {place}: the id {identifier!r} occurs twice; ids must differ")
        seen.add(identifier)
        answers = () if row.get("is_impossible") else _answer_texts(row.get("answers"), f"{name}, {place}")
        if not answers:
            left_out["unanswerable"] += 1
            continue
        for answer in answers:
            if answer not in row["context"]:
                raise UserError(
                    f"{name}, {place} (id {identifier}): the answer {answer!r} is not in its context; "
                    "fix the answer (case and spaces count) or remove the row"
                )
        examples.append(Example(identifier, row["context"].strip(), row["question"].strip(), answers))
    if not examples:
        reason = f" ({left_out['unanswerable']} unanswerable)" if left_out["unanswerable"] else ""
        raise UserError(f"{name}: has no question with an answer{reason}; give a file with answers")
    return examples


def _is_unicode(text: str) -> bool:
    """Return whether a text has no lone surrogates, which no tokenizer accepts."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _answer_texts(answers: Any, place: str) -> tuple[str, ...]:
    """Return the distinct answers, in order, of 'text', ['text', ...], {'text': [...]} or [{'text': ...}, ...]."""
    if isinstance(answers, dict):
        answers = answers.get("text")
    if isinstance(answers, str):
        answers = [answers]
    if answers is None or not isinstance(answers, Sequence):
        raise UserError(f"{place}: answers are missing or not a list; expected texts, or SQuAD's text and answer_start")
    texts: list[Any] = [answer.get("text") if isinstance(answer, dict) else answer for answer in answers]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(f"{place}: an answer is empty or not a text; fix or remove that row")
    return tuple(dict.fromkeys(text.strip() for text in texts))


def _file_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield the place and the row of each question of a SQuAD v1.1/v2 JSON or JSONL file, gzipped or not."""
    raw = path.read_bytes()
    try:
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
        text = raw.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: a damaged gzip file ({error}); fetch or write it again") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error}); give SQuAD JSON, .json.gz, or JSONL") from error
    if not text.strip():
        raise UserError(f"{path}: the file is empty; give SQuAD JSON, .json.gz, or JSONL")
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise UserError(f"{path}: JSON nested too deeply; give SQuAD JSON, .json.gz, or JSONL") from error
    except ValueError as error:
        if path.name.removesuffix(".gz").endswith(".json"):
            raise UserError(
                f"{path}: not JSON ({error}); fix it, or name it .jsonl if it has one row per line"
            ) from error
        yield from _jsonl_rows(path, text)
        return
    if isinstance(content, dict) and "data" in content:
        yield from _squad_rows(path, content["data"])
    elif isinstance(content, dict) and "context" in content:
        yield "line 1", content
    else:
        raise UserError(
            f"{path}: JSON, but neither SQuAD's format (an object with 'data') nor JSONL rows with context, question "
            "and answers; convert it to one of these formats"
        )


def _jsonl_rows(path: Path, text: str) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error}); fix or remove that line") from error


def _squad_rows(path: Path, articles: Any) -> Iterator[tuple[str, Row]]:
    try:
        for a, article in enumerate(articles):
            for p, paragraph in enumerate(article["paragraphs"]):
                for q, qa in enumerate(paragraph["qas"]):
                    place = f"article {a} paragraph {p} question {q}"
                    yield place, {**qa, "context": paragraph["context"], "id": qa.get("id", place)}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not in SQuAD's format ({type(error).__name__}: {error}); expected "
            "data[].paragraphs[].{context, qas[].{id, question, answers}}"
        ) from error


def _hub_rows(spec: DataSpec, split: str) -> Iterator[tuple[str, Row]]:
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
