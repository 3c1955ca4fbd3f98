"""Question answering examples: the shipped set, a SQuAD file, or the hub."""

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
from latentwire.harness.errors import UserError

ORIGINS = ("short_qa", "file", "hub")


@dataclass
class DataSpec:
    """Which examples to ask; the `data` node of the config.

    `origin` decides which of the other fields are read: short_qa (nothing), file (path and, if the shots shall
    come from another file, shots_path) or hub (repo, config, revision, shots_split, split).
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
        """Return what distinguishes these data, without parsing them."""
        if self.origin == "hub":
            return {
                "repo": self.repo,
                "config": self.config,
                "commit": hub_commit(self.repo, self.revision, "dataset"),
                "splits": [self.shots_split, self.split],
            }
        return {"sha256": [file_sha256(path) for path in self.files()]}

    def files(self) -> list[Path]:
        """Return the files to read, the one for the shots first.

        Raises:
            UserError: A file is not there.
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
                raise UserError(f"data file {name}: you may not read it; change its permissions")
        return [Path(name).expanduser() for name in names]


@dataclass(frozen=True)
class Example:
    """A passage, a question about it and the answers that count as right."""

    id: str
    context: str
    question: str
    answers: tuple[str, ...]


@dataclass
class Dataset:
    """Examples to draw shots from, examples to score, and what was left out of both, by reason."""

    train: list[Example]
    validation: list[Example]
    left_out: Counter[str] = field(default_factory=Counter)


def shipped_split_path(split: str) -> Path:
    """Return the file of a split (train, validation) of short_qa, the set that ships with the project."""
    return Path(__file__).parent / "short_qa" / f"{split}.json"


def load_data(spec: DataSpec) -> Dataset:
    """Read the examples of a data set.

    Raises:
        UserError: Missing, empty, of another format, or wrong in itself; says where and what to do.
    """
    if spec.origin not in ORIGINS:
        raise UserError(f"data.origin={spec.origin}: unknown; use one of {', '.join(ORIGINS)}")
    left_out: Counter[str] = Counter()
    if spec.origin == "hub":
        splits = [_checked(_hub_rows(spec, split), f"{spec.repo} ({split})", left_out)
                  for split in (spec.shots_split, spec.split)]  # fmt: skip
    else:
        splits = [_checked(_file_rows(path), str(path), left_out) for path in spec.files()]
    return Dataset(train=splits[0], validation=splits[-1], left_out=left_out)


def choose_examples(
    data: Dataset, samples: int, shots: int, questions_per_shot: int, seed: int
) -> tuple[list[list[Example]], list[Example]]:
    """Draw the shots and the examples to score, both by the seed alone.

    A shot is a passage with up to `questions_per_shot` of its questions. No passage of a shot is asked about. A
    smaller `samples` is a prefix of a larger one.

    Returns:
        `shots` lists of examples to show and `samples` examples to ask.

    Raises:
        UserError: There are fewer than that.
    """
    for name, value, least in (
        ("samples", samples, 1),
        ("shots", shots, 0),
        ("questions_per_shot", questions_per_shot, 1),
    ):
        if value < least:
            raise UserError(f"{name}={value}: at least {least} is needed")
    passages: dict[str, list[Example]] = {}
    for example in data.train:
        passages.setdefault(example.context, []).append(example)
    if len(passages) < shots:
        raise UserError(f"shots={shots}: the data have only {len(passages)} passages to take them from; lower shots")
    generator = torch.Generator().manual_seed(seed)
    contexts = list(passages)
    shown = [contexts[index] for index in torch.randperm(len(contexts), generator=generator).tolist()[:shots]]
    order = torch.randperm(len(data.validation), generator=generator).tolist()
    askable = [data.validation[index] for index in order if data.validation[index].context not in shown]
    if samples > len(askable):
        raise UserError(
            f"samples={samples}: the data have only {len(askable)} examples besides the shots' passages; "
            f"use samples={len(askable)} or less, or more data"
        )
    return [passages[context][:questions_per_shot] for context in shown], askable[:samples]


Row = dict[str, Any]


def _checked(rows: Iterable[tuple[str, Row]], name: str, left_out: Counter[str]) -> list[Example]:
    """Turn raw rows into examples: unanswerable ones are counted and left out, faulty ones are an error."""
    examples: list[Example] = []
    seen: set[str] = set()
    for place, row in rows:
        if not isinstance(row, dict):
            raise UserError(f"{name}, {place}: a {type(row).__name__} where an object with context, question and "
                            "answers is expected; mend that row")  # fmt: skip
        for key in ("context", "question"):
            if not isinstance(row.get(key), str) or not row[key].strip() or not _is_unicode(row[key]):
                raise UserError(f"{name}, {place}: {key} is missing, empty or no text; mend or remove that row")
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
                    f"{name}, {place} (id {identifier}): the answer {answer!r} is not in its context, so reading "
                    "cannot find it; mend the answer (case and spaces count) or remove the row"
                )
        examples.append(Example(identifier, row["context"].strip(), row["question"].strip(), answers))
    if not examples:
        reason = f" ({left_out['unanswerable']} unanswerable)" if left_out["unanswerable"] else ""
        raise UserError(f"{name}: holds no question with an answer{reason}; give a file that has some")
    return examples


def _is_unicode(text: str) -> bool:
    """Tell whether a text has no lone surrogates, which no tokenizer takes."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _answer_texts(answers: Any, place: str) -> tuple[str, ...]:
    """Accept 'text', ['text', ...], {'text': [...]} and [{'text': ...}, ...]; drop repetitions, keep the order."""
    if isinstance(answers, dict):
        answers = answers.get("text")
    if isinstance(answers, str):
        answers = [answers]
    if answers is None or not isinstance(answers, Sequence):
        raise UserError(f"{place}: answers are missing or no list; expected texts, or SQuAD's text and answer_start")
    texts: list[Any] = [answer.get("text") if isinstance(answer, dict) else answer for answer in answers]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(f"{place}: an answer is empty or no text; mend or remove that row")
    return tuple(dict.fromkeys(text.strip() for text in texts))


def _file_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield (place, row) of a SQuAD v1.1/v2 JSON or JSONL file, gzipped or not."""
    raw = path.read_bytes()
    try:
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
        text = raw.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: a damaged gzip file ({error}); fetch or write it again") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: no UTF-8 text ({error}); give SQuAD JSON, .json.gz, or JSONL") from error
    if not text.strip():
        raise UserError(f"{path}: the file is empty; give SQuAD JSON, .json.gz, or JSONL")
    try:
        whole = json.loads(text)
    except RecursionError as error:
        raise UserError(f"{path}: JSON nested too deeply; give SQuAD JSON, .json.gz, or JSONL") from error
    except ValueError as error:
        if path.name.removesuffix(".gz").endswith(".json"):
            raise UserError(f"{path}: not JSON ({error}); mend it, or name it .jsonl if it has a row a line") from error
        yield from _jsonl_rows(path, text)
        return
    if isinstance(whole, dict) and "data" in whole:
        yield from _squad_rows(path, whole["data"])
    elif isinstance(whole, dict) and "context" in whole:
        yield "line 1", whole
    else:
        raise UserError(
            f"{path}: JSON, but not of SQuAD's shape (an object with 'data'), nor JSONL rows with context, question "
            "and answers; convert it to one of them"
        )


def _jsonl_rows(path: Path, text: str) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error}); mend or remove that line") from error


def _squad_rows(path: Path, articles: Any) -> Iterator[tuple[str, Row]]:
    try:
        for a, article in enumerate(articles):
            for p, paragraph in enumerate(article["paragraphs"]):
                for q, qa in enumerate(paragraph["qas"]):
                    place = f"article {a} paragraph {p} question {q}"
                    yield place, {**qa, "context": paragraph["context"], "id": qa.get("id", place)}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not of SQuAD's shape ({type(error).__name__}: {error}); expected "
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
        message = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"data={spec.name}: {spec.repo} ({split}) could not be read from the hub ({message}); check the name, "
            "the network and your login, or use data=short_qa, or data=file path=FILE"
        ) from error
    for number, row in enumerate(rows):
        yield f"row {number}", row
