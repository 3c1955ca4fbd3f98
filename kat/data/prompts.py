"""Unique prompts with stable ids, and the prompt of each pair. Main entries: `unique_prompts()`, `read_prompts()`.

A prompt's id is a hash of its whole conversation after normalisation: Unicode NFC, line ends as \\n, no white space
around a message. Prompts that differ in case, punctuation or inner spaces have different ids.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kat.data.columns import ARGUMENTS, PROMPT_FIELDS, is_unicode
from kat.data.files import BrokenRow, RowRange, data_files, file_rows
from kat.data.formats import Message, UnusableRowError, user
from kat.data.pairs import PreferencePair
from latentwire.harness.errors import UserError
from latentwire.harness.results import JsonObject

TEXT_FORMAT = "plain-1"  # version of the text that render_conversation() writes, recorded with embeddings


@dataclass
class Prompt:
    """A unique prompt.

    `text` is shown and embedded. `multiplicity` is the number of pairs with this prompt in the selected splits, and
    `sources` the number for each data set. `splits` is the number of pairs for each split, selected or not.

    `columns` are the other columns of its rows, for reward functions. If the rows differ in a column, the first row
    that has a value decides, and the column is in `conflicts`.
    """

    id: str
    prompt: list[Message]
    text: str
    multiplicity: int = 0
    sources: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    columns: JsonObject = field(default_factory=dict)
    conflicts: set[str] = field(default_factory=set, compare=False)

    @property
    def source(self) -> str:
        """Return the name of the prompt's data set; several names are joined by +."""
        return "+".join(sorted(self.sources))

    def row(self) -> JsonObject:
        """Return the prompt as a row of prompts_all.jsonl."""
        return {
            "id": self.id,
            "prompt": self.prompt,
            "text": self.text,
            "source": self.source,
            "multiplicity": self.multiplicity,
            "sources": dict(sorted(self.sources.items())),
            "splits": dict(sorted(self.splits.items())),
            **self.columns,
        }

    def reward_columns(self) -> JsonObject:
        """Return what reward functions may take: all fields of the row except the messages of the prompt."""
        return {name: value for name, value in self.row().items() if name != "prompt"}

    def add_columns(self, columns: JsonObject) -> None:
        """Take over the columns of another row with this prompt; values that are there stay."""
        for name, value in columns.items():
            known = self.columns.get(name)
            if known is None:
                self.columns[name] = value
            elif value is not None and value != known:
                self.conflicts.add(name)


def normalise(messages: Iterable[Mapping[str, str]]) -> list[Message]:
    """Return a conversation in the normal form, from which its id is computed."""
    return [
        {
            "role": message["role"].strip().lower(),
            "content": unicodedata.normalize("NFC", message["content"])
            .replace("\r\n", "\n").replace("\r", "\n").strip(),
        }
        for message in messages
    ]  # fmt: skip


def prompt_id(messages: Iterable[Mapping[str, str]]) -> str:
    """Return the id of a conversation: 16 hexadecimal digits of the sha256 of its normal form."""
    turns = [[message["role"], message["content"]] for message in normalise(messages)]
    canonical = json.dumps(turns, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def render_conversation(messages: Sequence[Mapping[str, str]]) -> str:
    """Return a conversation as plain text: a single question unchanged, other conversations as 'role: content'.

    No chat template is used. Its fixed tokens would be averaged into every embedding and make all prompts similar.
    """
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def unique_prompts(
    pairs: Iterable[PreferencePair], split: str | None = None
) -> tuple[list[Prompt], list[tuple[str, str]]]:
    """Return the unique prompts of pairs, compared in their normal form.

    Args:
        pairs: Preference pairs.
        split: The split whose prompts are kept; None keeps the prompts of all splits.

    Returns:
        The prompts in order of first appearance, and (pair id, prompt id) for every pair of the split. All prompts
        have the same columns; a value that no row gives is None.

    >>> pairs = [PreferencePair(str(n), [{"role": "user", "content": text}], [], [], "mine", "train")
    ...          for n, text in enumerate(["Why?", "  Why?", "How?"])]
    >>> prompts, _ = unique_prompts(pairs)
    >>> [(prompt.text, prompt.multiplicity) for prompt in prompts]
    [('Why?', 2), ('How?', 1)]
    """
    prompts: dict[str, Prompt] = {}
    pair_to_prompt: list[tuple[str, str]] = []
    for pair in pairs:
        messages = normalise(pair.prompt)
        key = prompt_id(messages)
        prompt = prompts.setdefault(key, Prompt(key, messages, render_conversation(messages)))
        prompt.splits[pair.split] += 1
        if split is None or pair.split == split:
            prompt.multiplicity += 1
            prompt.sources[pair.source] += 1
            prompt.add_columns(pair.columns)
            pair_to_prompt.append((pair.id, key))
    return _with_equal_columns([prompt for prompt in prompts.values() if prompt.multiplicity]), pair_to_prompt


def _with_equal_columns(prompts: list[Prompt]) -> list[Prompt]:
    """Give every prompt all columns of all prompts, in order of first appearance."""
    names = dict.fromkeys(name for prompt in prompts for name in prompt.columns)
    for prompt in prompts:
        prompt.columns = {name: prompt.columns.get(name) for name in names}
    return prompts


def prompt_paths(path: Path) -> list[Path]:
    """Return the files of prompts in a folder, in the order of their names. A file is returned alone.

    Raises:
        UserError: The path does not exist, or the folder has no file with rows.
    """
    if not path.exists():
        raise UserError(
            f"prompts_file={path}: no such file; make it with task=prompts, or give a file with a column prompt"
        )
    return data_files(path, "prompts_file")


def prompts_in(path: Path, part: RowRange | None = None) -> Iterator[tuple[str, Prompt]]:
    """Yield (place, prompt) from a file of prompts, see `read_prompts`. Prompts before `part` are not parsed.

    Raises:
        UserError: The file is missing, damaged or empty, or a row has no usable prompt.
    """
    for place, row in file_rows(path, "prompts_file", part):
        yield place, _prompt_of(row, f"prompts_file={path}, {place}", path.name.split(".")[0])


def repeated_id(name: str, path: Path, place: str, first: Path, first_place: str) -> UserError:
    """Return the error about an id that two rows have: at `place` in `path`, and first at `first_place` in `first`."""
    where = first_place if path == first else f"{first}, {first_place}"
    return UserError(
        f"prompts_file={path}, {place}: has the id {name}, as {where} has; remove one of the rows (rows without an id "
        "get the same one if their prompts are the same)"
    )


def read_prompts(path: Path) -> list[Prompt]:
    """Return the prompts in a prompts_all.jsonl, in a file of the user's own, or in the files of a folder.

    A row needs a `prompt`, as a text or as messages. A missing `text` or `id` is made as task=prompts makes it, and a
    missing `source` is the name of the file. All columns that are not fields of a prompt are kept in `columns`; all
    prompts have the same ones, and a value that a row lacks is None.

    Args:
        path: JSONL or a JSON array, gzipped or not, or Parquet; or a folder of such files.

    Raises:
        UserError: A file is missing, damaged or empty, a row has no usable prompt, or two rows have the same id.
    """
    prompts: list[Prompt] = []
    places: dict[str, tuple[Path, str]] = {}  # of each id
    for file in prompt_paths(path):
        for place, prompt in prompts_in(file):
            if prompt.id in places:
                raise repeated_id(prompt.id, file, place, *places[prompt.id])
            places[prompt.id] = file, place
            prompts.append(prompt)
    return _with_equal_columns(prompts)


def topics_of(prompts: Iterable[Prompt]) -> dict[str, int]:
    """Return the whole number in the column `topic` of each prompt that has one, by the prompt's id."""
    found = {prompt.id: prompt.columns.get("topic") for prompt in prompts}
    return {name: topic for name, topic in found.items() if isinstance(topic, int) and not isinstance(topic, bool)}


def _prompt_of(row: object, where: str, source: str) -> Prompt:
    """Return the prompt in a row of a prompts file.

    Args:
        row: The row.
        where: File and line, for messages.
        source: Name of the data set if the row does not name one.
    """
    if isinstance(row, BrokenRow):
        raise UserError(f"{where}: {row.reason}; fix the row, or make the file again with task=prompts")
    if not isinstance(row, dict) or row.get("prompt") is None:
        raise UserError(
            f"{where}: not a row of a prompts file, which is a JSON object with a prompt; fix the row, or make the "
            "file again with task=prompts"
        )
    if taken := next((name for name in ARGUMENTS if row.get(name) is not None), None):
        raise UserError(f"{where}: {taken} is an argument of every reward function; rename this column")
    own = {name: value for name, value in row.items() if name in PROMPT_FIELDS and value is not None}
    for name, (is_valid, words) in FIELDS.items():
        if name in own and not is_valid(own[name]):
            raise UserError(f"{where}: {name}={own[name]!r}: must be {words}; fix the row, or rename this column")
    try:
        messages = user(own["prompt"])
    except UnusableRowError as error:
        raise UserError(f"{where}: prompt: {error}; give a text, or messages with role and content") from error
    contents = [message["content"] for message in messages]
    if not _is_text(" ".join(contents)):
        raise UserError(f"{where}: the prompt is empty or not valid Unicode; fix or remove the row")
    if not {"id", "text"} <= own.keys():
        messages = normalise(messages)
    return Prompt(
        id=own.get("id", prompt_id(messages)),
        prompt=messages,
        text=own.get("text", render_conversation(messages)),
        multiplicity=own.get("multiplicity", 1),
        sources=Counter(own.get("sources", {own.get("source", source): 1})),
        splits=Counter(own.get("splits", {})),
        columns={name: value for name, value in row.items() if name not in (*PROMPT_FIELDS, *ARGUMENTS)},
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and is_unicode(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_counts(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value)) and all(map(_is_count, value.values()))


# A check of each field of a prompts file that a row may lack, and what the field must be.
FIELDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "id": (_is_text, "a text that is not empty"),
    "text": (_is_text, "a text that is not empty"),
    "source": (_is_text, "a text that is not empty"),
    "multiplicity": (_is_count, "a whole number"),
    "sources": (_are_counts, "an object of whole numbers"),
    "splits": (_are_counts, "an object of whole numbers"),
}
