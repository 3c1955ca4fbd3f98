"""Sampled completions in a file that grows piece by piece, so a killed run resumes. Main entry: `sample_into()`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kat.grpo.rollout import Completion, Sampling, sample
from latentwire.harness.results import numbered_rows, writing
from latentwire.lm.batching import largest_first
from latentwire.records import checked

PIECE = 8  # prompts in a piece; a killed run keeps its finished pieces
REMEDY = "move the file away to sample again"


class SampledText(TypedDict):
    """A completion without its end token."""

    ids: list[int]
    ended: bool  # whether it ended within the token limit
    entropy: list[float]  # of the distribution of each drawn token in nats, including the end token
    text: str


class SampledRow(SampledText):
    """A line of samples.jsonl."""

    key: str  # hash of everything that the completion depends on
    checkpoint: str
    prompt_id: str
    number: int  # of the completion, from 0


class SampleFile:
    """A file of completions, one `SampledRow` each.

    Args:
        path: The JSONL file. An incomplete last line from a killed run is removed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_file():
            with writing(path), path.open("rb+") as file:
                content = file.read()
                file.truncate(content.rfind(b"\n") + 1)

    def read(self, key: str) -> dict[tuple[str, int], SampledRow]:
        """Return the rows with a key, by prompt id and completion number.

        Raises:
            DamagedResultError: A line cannot be read, or a row with this key lacks a field.
        """
        if not self.path.is_file():
            return {}
        rows = [row for _, row in numbered_rows(self.path, REMEDY) if row.get("key") == key]
        sampled = [checked(SampledRow, row, self.path, REMEDY) for row in rows]
        return {(row["prompt_id"], row["number"]): row for row in sampled}

    def add(self, rows: Sequence[SampledRow]) -> None:
        """Append rows and flush them to the disk."""
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
                file.flush()
                os.fsync(file.fileno())


@dataclass(frozen=True)
class SampleJob:
    """The completions of one model that a file should have.

    Attributes:
        key: Hash of everything that the completions depend on.
        label: Name of the model, for readers.
        ids: Ids of the M prompts.
        prompts: Token ids of each prompt.
        sampling: Settings of the sampling.
        seed: Seed of all draws.
    """

    key: str
    label: str
    ids: Sequence[str]
    prompts: Sequence[Sequence[int]]
    sampling: Sampling
    seed: int

    def pieces(self) -> list[list[int]]:
        """Return the indices of the prompts in pieces of similar length. Finished work does not change the pieces."""
        order = largest_first([len(prompt) for prompt in self.prompts])
        return [order[start : start + PIECE] for start in range(0, len(order), PIECE)]

    def missing(self, file: SampleFile) -> list[list[int]]:
        """Return the pieces with missing completions."""
        rows, count = file.read(self.key), self.sampling.num_generations
        return [
            piece for piece in self.pieces() if not all((self.ids[i], g) in rows for i in piece for g in range(count))
        ]

    def rows(self, file: SampleFile) -> list[list[SampledRow]]:
        """Return the completions by prompt and number, all of which the file must have."""
        rows = file.read(self.key)
        return [[rows[name, number] for number in range(self.sampling.num_generations)] for name in self.ids]


def sample_into(
    file: SampleFile,
    job: SampleJob,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ends: frozenset[int],
    advance: Callable[[int, str], None],
) -> None:
    """Sample the missing completions of a model, and write each piece when it is complete.

    Completion g of a prompt uses the same random numbers for every model: generator_for(seed, "diversity", prompt id,
    g).

    Args:
        file: The file of completions.
        job: The completions that it should have.
        model: A causal LM of transformers, in evaluation mode.
        tokenizer: Its tokenizer.
        ends: The token ids that end a completion.
        advance: A function that is called after each piece with its number of completions and their mean length.
    """
    for piece in job.missing(file):
        keys = [("diversity", job.ids[i]) for i in piece]
        sampled = sample(model, [job.prompts[i] for i in piece], keys, job.sampling, seed=job.seed, ends=ends)
        file.add(
            [
                {
                    "key": job.key,
                    "checkpoint": job.label,
                    "prompt_id": job.ids[i],
                    "number": number,
                    **_sampled_text(completion, tokenizer),
                }
                for i, completions in zip(piece, sampled, strict=True)
                for number, completion in enumerate(completions)
            ]
        )
        tokens = sum(len(completion.ids) for completions in sampled for completion in completions)
        advance(len(piece) * job.sampling.num_generations, f"{tokens / len(piece) / len(sampled[0]):.1f} tokens each")


def _sampled_text(completion: Completion, tokenizer: PreTrainedTokenizerBase) -> SampledText:
    ids = completion.text_ids
    return {
        "ids": ids,
        "ended": completion.ended,
        "entropy": [round(value, 6) for value in completion.entropy.tolist()],
        "text": str(tokenizer.decode(ids, skip_special_tokens=True)),
    }
