"""Sampled completions in a file that grows piece by piece, so a killed run resumes. Main entry: `sample_into()`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kat.grpo.rollout import Completion, Sampling, sample
from latentwire.harness.results import numbered_rows, writing
from latentwire.lm.batching import largest_first

PIECE = 8  # prompts in a piece; a killed run keeps its finished pieces
Row = dict[str, Any]


class SampleFile:
    """A file of completions, one row each. The `key` of a row is a hash of everything that the completion depends on.

    Args:
        path: The JSONL file. An incomplete last line from a killed run is removed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_file():
            with writing(path), path.open("rb+") as file:
                content = file.read()
                file.truncate(content.rfind(b"\n") + 1)

    def read(self, key: str) -> dict[tuple[str, int], Row]:
        """Return the rows with a key, by prompt id and completion number."""
        if not self.path.is_file():
            return {}
        rows = (row for _, row in numbered_rows(self.path, "move the file away to sample again"))
        return {(row["prompt_id"], row["number"]): row for row in rows if row.get("key") == key}

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows and flush them to the disk."""
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
                file.flush()
                os.fsync(file.fileno())


def pieces(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the prompts in pieces of similar length. Finished work does not change the pieces.

    Args:
        prompts: The token ids of each prompt.

    Returns:
        Indices into `prompts`, piece by piece.
    """
    order = largest_first([len(prompt) for prompt in prompts])
    return [order[start : start + PIECE] for start in range(0, len(order), PIECE)]


def missing(file: SampleFile, key: str, ids: Sequence[str], prompts: Sequence[Sequence[int]], count: int) -> list[int]:
    """Return the numbers of the pieces with missing completions.

    Args:
        file: The file of completions.
        key: The key of the completions.
        ids: The ids of the prompts.
        prompts: The token ids of each prompt.
        count: The number of completions for each prompt.
    """
    rows = file.read(key)
    return [
        number
        for number, piece in enumerate(pieces(prompts))
        if not all((ids[i], g) in rows for i in piece for g in range(count))
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
    """Sample the missing completions of a model, and write each piece when it is complete.

    Completion g of a prompt uses the same random numbers for every model: generator_for(seed, "diversity", prompt id,
    g).

    Args:
        file: The file of completions.
        key: The hash of everything that the completions depend on.
        label: The name of the model, for readers.
        model: A causal LM of transformers, in evaluation mode.
        tokenizer: Its tokenizer.
        ids: The ids of the M prompts.
        prompts: The token ids of each prompt.
        sampling: The sampling settings.
        seed: The seed of all draws.
        ends: The token ids that end a completion.
        advance: A function that is called after each piece with its number of completions and their mean length.
    """
    all_pieces = pieces(prompts)
    for number in missing(file, key, ids, prompts, sampling.num_generations):
        piece = all_pieces[number]
        keys = [("diversity", ids[i]) for i in piece]
        sampled = sample(model, [prompts[i] for i in piece], keys, sampling, seed=seed, ends=ends)
        file.add(
            [
                {"key": key, "checkpoint": label, "prompt_id": ids[i], "number": g, **_row(completion, tokenizer)}
                for i, completions in zip(piece, sampled, strict=True)
                for g, completion in enumerate(completions)
            ]
        )
        tokens = sum(len(completion.ids) for completions in sampled for completion in completions)
        advance(len(piece) * sampling.num_generations, f"{tokens / len(piece) / len(sampled[0]):.1f} tokens each")


def _row(completion: Completion, tokenizer: Any) -> Row:
    ids = list(completion.ids[:-1] if completion.ended else completion.ids)
    return {
        "ids": ids,
        "ended": completion.ended,
        "entropy": [round(value, 6) for value in completion.entropy.tolist()],
        "text": tokenizer.decode(ids, skip_special_tokens=True),
    }
