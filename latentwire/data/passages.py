"""Passages with their questions, read from a file and split at ends of sentences. Main entry: `read_passages()`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from latentwire.data.examples import DataSpec, Example, load_data
from latentwire.harness.errors import UserError


@dataclass(frozen=True)
class Passage:
    """A passage and the questions about it."""

    text: str
    questions: tuple[Example, ...]  # empty for text without questions


def group_by_context(examples: Iterable[Example]) -> list[Passage]:
    """Return the passages of examples in order of appearance, each once with all its questions."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.context, []).append(example)
    return [Passage(text, tuple(questions)) for text, questions in groups.items()]


def read_passages(path: str, setting: str) -> list[Passage]:
    """Return the passages of a file.

    Args:
        path: Path of a .txt (passages between empty lines, without questions) or of a file for data=file.
        setting: Setting that names the file, for messages.

    Raises:
        UserError: The file is missing, empty, or in another format.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{setting}={path}: no such file; give a .txt, or a file in the format of data=file")
    if path.endswith(".txt"):
        try:
            texts = [" ".join(part.split()) for part in file.read_text(encoding="utf-8").split("\n\n")]
        except UnicodeDecodeError as error:
            raise UserError(f"{setting}={path}: not UTF-8 text ({error.reason}); convert it") from error
        passages = [Passage(text, ()) for text in texts if text]
        if not passages:
            raise UserError(f"{setting}={path}: the file holds no text; give one with passages between empty lines")
        return passages
    return group_by_context(load_data(DataSpec(setting, "file", path=path)).train)


def sentences_of(text: str) -> list[str]:
    """Return the sentences of a text: it is split at white space after a full stop, ! or ?."""
    return re.split(r"(?<=[.!?])\s+", text)


def split_passage(passage: Passage, words: int, counts: Counter[str]) -> list[Passage]:
    """Split a passage at the ends of sentences; each question goes to the one part that contains its first answer.

    Args:
        passage: The passage. If it has questions, only parts with questions are returned.
        words: Maximum number of words of a part; a longer sentence is a part of its own.
        counts: Number of skipped questions by reason; grows by questions whose answer is in none or several parts.

    Returns:
        The parts, in the order of the text.
    """
    parts: list[list[str]] = []
    for sentence in sentences_of(passage.text):
        fits = parts and sum(len(each.split()) for each in [*parts[-1], sentence]) <= words
        if fits:
            parts[-1].append(sentence)
        else:
            parts.append([sentence])
    texts = [" ".join(part) for part in parts]
    if not passage.questions:
        return [Passage(text, ()) for text in texts]
    by_part: dict[str, list[Example]] = {text: [] for text in texts}
    for example in passage.questions:
        holding = [text for text in texts if example.answers[0] in text]
        if len(holding) == 1:
            by_part[holding[0]].append(replace(example, context=holding[0]))
        else:
            counts["questions of no one part of a split passage"] += 1
    return [Passage(text, tuple(examples)) for text, examples in by_part.items() if examples]
