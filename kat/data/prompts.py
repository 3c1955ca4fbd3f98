"""Unique prompts with stable ids, and the prompt of each pair. Main entry: `unique_prompts()`.

A prompt's id is a hash of its whole conversation after normalisation: Unicode NFC, line ends as \\n, no white space
around a message. Prompts that differ in case, punctuation or inner spaces have different ids.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kat.data.formats import Message
from kat.data.pairs import PreferencePair
from latentwire.harness.errors import UserError
from latentwire.harness.results import numbered_rows

TEXT_FORMAT = "plain-1"  # version of the text that render_conversation() writes, recorded with embeddings


@dataclass
class Prompt:
    """A unique prompt.

    `text` is shown and embedded. `multiplicity` is the number of pairs with this prompt in the selected splits, and
    `sources` the number for each data set. `splits` is the number of pairs for each split, selected or not.
    """

    id: str
    prompt: list[Message]
    text: str
    multiplicity: int = 0
    sources: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)

    @property
    def source(self) -> str:
        """Return the name of the prompt's data set; several names are joined by +."""
        return "+".join(sorted(self.sources))

    def row(self) -> dict[str, Any]:
        """Return the prompt as a row of prompts_all.jsonl."""
        return {
            "id": self.id,
            "prompt": self.prompt,
            "text": self.text,
            "source": self.source,
            "multiplicity": self.multiplicity,
            "sources": dict(sorted(self.sources.items())),
            "splits": dict(sorted(self.splits.items())),
        }


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
        The prompts in order of first appearance, and (pair id, prompt id) for every pair of the split.
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
            pair_to_prompt.append((pair.id, key))
    return [prompt for prompt in prompts.values() if prompt.multiplicity], pair_to_prompt


def read_prompts(path: Path) -> list[Prompt]:
    """Return the prompts in a prompts_all.jsonl.

    Raises:
        UserError: The file is missing, damaged, not a prompts file, or has an id twice.
    """
    if not path.is_file():
        raise UserError(f"prompts_file={path}: no such file; make it with task=prompts")
    prompts: list[Prompt] = []
    seen: set[str] = set()
    for number, row in numbered_rows(path, "make the file again with task=prompts"):
        place = f"prompts_file={path}, line {number}"
        try:
            sources, splits = row.get("sources") or {row["source"]: 1}, row.get("splits") or {}
            prompt = Prompt(row["id"], row["prompt"], row["text"], int(row.get("multiplicity", 1)),
                            Counter(sources), Counter(splits))  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{place}: not a row of a prompts file ({type(error).__name__}: {error}); it "
                "needs id, prompt, text and source; make the file again with task=prompts"
            ) from error
        if not isinstance(prompt.id, str) or not isinstance(prompt.text, str) or not prompt.text.strip():
            raise UserError(f"{place}: id or text is empty or not a text; fix or remove the row")
        if prompt.id in seen:
            raise UserError(f"{place}: the id {prompt.id} occurs twice; remove one of the rows")
        seen.add(prompt.id)
        prompts.append(prompt)
    if not prompts:
        raise UserError(f"prompts_file={path}: the file is empty; make it again with task=prompts")
    return prompts
