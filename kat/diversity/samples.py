"""Sampled completions in a file that outlives a killed run: rows are added piece by piece, never rewritten."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kat.grpo.rollout import Completion, Sampling, sample
from latentwire.harness.results import numbered_rows, writing

PIECE = 8  # prompts sampled at a time; finished ones outlive a killed run
Row = dict[str, Any]


class SampleFile:
    """The completions of several models, a row each: `key` says what decides them, so that no other is taken for them.

    Args:
        path: A JSONL file. A last line that a killed run left unfinished is cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_file():
            with writing(path), path.open("rb+") as file:
                content = file.read()
                file.truncate(content.rfind(b"\n") + 1)

    def read(self, key: str) -> dict[tuple[str, int], Row]:
        """Return the rows of a key by prompt and number."""
        if not self.path.is_file():
            return {}
        rows = (row for _, row in numbered_rows(self.path, "move it away to sample anew"))
        return {(row["prompt_id"], row["number"]): row for row in rows if row.get("key") == key}

    def add(self, rows: Sequence[Row]) -> None:
        """Write rows to the disk."""
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
                file.flush()
                os.fsync(file.fileno())


def pieces(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the prompts in pieces of similar length; they depend on all the prompts, not on what is finished.

    Args:
        prompts: Token ids.
    """
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    return [order[start : start + PIECE] for start in range(0, len(order), PIECE)]


def missing(file: SampleFile, key: str, ids: Sequence[str], prompts: Sequence[Sequence[int]], count: int) -> list[int]:
    """Return the pieces of which not all completions are in the file, by number."""
    found = file.read(key)
    return [
        number
        for number, piece in enumerate(pieces(prompts))
        if not all((ids[i], g) in found for i in piece for g in range(count))
    ]


def sample_into(
    file: SampleFile,
    key: str,
    label: str,
    model: Any,
    tokenizer: Any,
    ids: Sequence[str],
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    seed: int,
    ends: frozenset[int],
    advance: Callable[[int, str], None],
) -> None:
    """Sample what is missing of a model's completions and write each piece when it is whole.

    Completion g of a prompt draws from the same random numbers whatever the model: generator_for(seed, "diversity",
    the prompt's id, g).

    Args:
        file: Where they go.
        key: What decides them.
        label: Of the model, for readers.
        model: A causal LM of transformers, in evaluation mode.
        tokenizer: Its tokenizer.
        ids: Of the M prompts.
        prompts: Their token ids.
        sampling: How.
        seed: Of all draws.
        ends: Ids that end a completion.
        advance: Is told the number of completions of each piece, and how long they are.
    """
    every = pieces(prompts)
    for number in missing(file, key, ids, prompts, sampling.num_generations):
        piece = every[number]
        keys = [("diversity", ids[i]) for i in piece]
        found = sample(model, [prompts[i] for i in piece], keys, sampling, seed=seed, ends=ends)
        file.add(
            [
                {"key": key, "checkpoint": label, "prompt_id": ids[i], "number": g, **_row(completion, tokenizer)}
                for i, completions in zip(piece, found, strict=True)
                for g, completion in enumerate(completions)
            ]
        )
        tokens = sum(len(completion.ids) for completions in found for completion in completions)
        advance(len(piece) * sampling.num_generations, f"{tokens / len(piece) / len(found[0]):.1f} tokens each")


def _row(completion: Completion, tokenizer: Any) -> Row:
    ids = list(completion.ids[:-1] if completion.ended else completion.ids)
    return {
        "ids": ids,
        "ended": completion.ended,
        "entropy": [round(value, 6) for value in completion.entropy.tolist()],
        "text": tokenizer.decode(ids, skip_special_tokens=True),
    }
