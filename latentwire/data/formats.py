"""Rows of question answering files. Main entry: `question_rows()`."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latentwire.harness.errors import UserError
from latentwire.harness.results import JsonObject


def question_rows(path: Path) -> Iterator[tuple[str, JsonObject]]:
    """Yield the place and the row of each question of a SQuAD v1.1/v2 JSON or JSONL file, gzipped or not.

    Raises:
        UserError: The file is damaged, empty or in another format.
    """
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


def _jsonl_rows(path: Path, text: str) -> Iterator[tuple[str, JsonObject]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error}); fix or remove that line") from error


def _squad_rows(path: Path, articles: Any) -> Iterator[tuple[str, JsonObject]]:
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
