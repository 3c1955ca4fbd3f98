"""Embeddings of prompts, written shard by shard, and the record of all shards. Main entry: `write_shard()`.

`kat.embedding.sharded` reads them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np

from kat.data.prompts import Prompt
from kat.embedding.pooling import Embedder, plan_embedding_batches
from kat.embedding.sharded import ShardsRecord
from kat.embedding.stored import text_digest
from latentwire.harness.results import MadeBy
from latentwire.harness.shard_files import ShardFolder
from latentwire.records import checked

EXCERPT = 200  # characters of a text that are kept, to show it
LENGTHS_AT_A_TIME = 4096  # texts that are tokenized at a time; their token ids take more memory than the texts


class ShardFacts(TypedDict):
    """What is known of a shard besides its rows."""

    rows: int
    dim: int  # 0 without rows
    tokens: int  # of the embedded texts
    max_tokens: int  # length of the longest text that the embedder reads
    too_long: list[str]  # ids of prompts that the embedder cannot read
    no_tokens: list[str]  # ids of prompts without a token
    time_sec: float


class ShardedEmbeddingsRecord(ShardsRecord, MadeBy):
    """embeddings.json in a folder of shards. A shard without rows is not listed."""

    model: str | None  # name of the language model, if the embedder uses it
    prompts_file: str
    prompts: dict[str, str]  # sha256 of each file of the prompts
    shard_rows: int
    too_long: int  # number of prompts that the embedder cannot read; their ids are in the records of the shards
    tokens: int
    max_tokens: int
    time_sec: float  # summed over the shards
    device: str


def write_shard(
    files: ShardFolder,
    name: str,
    prompts: Sequence[Prompt],
    embedder: Embedder,
    batch_tokens: int,
    advance: Callable[[int], None],
) -> None:
    """Embed the prompts of a shard and write it, completely or not at all. Rows are in the order of the prompts.

    Args:
        files: The folder.
        name: Name of the shard.
        prompts: Its prompts. One that has no tokens or too many gets no row.
        embedder: The embedder.
        batch_tokens: The largest number of positions (rows x longest text) in a batch.
        advance: A function that is called after each batch with its number of prompts.

    Raises:
        UserError: The embedder fails.
        ResultWriteError: The folder is not writable, or the disk is full.
    """
    import pyarrow as pa

    started = time.perf_counter()
    lengths = _lengths(embedder, [prompt.text for prompt in prompts])
    kept = [i for i, length in enumerate(lengths) if 0 < length <= embedder.max_tokens]
    emb = np.zeros((len(kept), 0), np.float16)  # (n, D), with D from the first batch
    for batch in plan_embedding_batches([lengths[i] for i in kept], batch_tokens):
        vectors = embedder.embed([prompts[kept[row]].text for row in batch])
        if emb.shape[1] == 0:
            emb = np.zeros((len(kept), vectors.shape[1]), np.float16)
        emb[batch] = vectors.numpy()
        advance(len(batch))
    table = pa.table(
        {
            "id": pa.array([prompts[i].id for i in kept], pa.string()),
            "source": pa.array([prompts[i].source for i in kept], pa.string()),
            "digest": pa.array([text_digest(prompts[i].text) for i in kept], pa.string()),
            "excerpt": pa.array([prompts[i].text[:EXCERPT] for i in kept], pa.string()),
        }
    )
    facts: ShardFacts = {
        "rows": len(kept),
        "dim": emb.shape[1],
        "tokens": sum(lengths[i] for i in kept),
        "max_tokens": embedder.max_tokens,
        "too_long": [prompts[i].id for i, length in enumerate(lengths) if length > embedder.max_tokens],
        "no_tokens": [prompts[i].id for i, length in enumerate(lengths) if length == 0],
        "time_sec": round(time.perf_counter() - started, 3),
    }
    files.save(name, {"emb": emb}, {"prompts": table}, dict(facts))


def _lengths(embedder: Embedder, texts: Sequence[str]) -> list[int]:
    parts = range(0, len(texts), LENGTHS_AT_A_TIME)
    return [length for start in parts for length in embedder.lengths(texts[start : start + LENGTHS_AT_A_TIME])]


def shard_facts(files: ShardFolder, name: str) -> ShardFacts:
    """Return the facts of a finished shard.

    Raises:
        DamagedResultError: The record of the shard lacks a fact.
    """
    return checked(ShardFacts, files.facts(name), files.folder / f"{name}.json", "delete it, and run task=embed again")


def all_ids(files: ShardFolder, name: str) -> list[str]:
    """Return the ids of all prompts of a finished shard: those with a row, then the others."""
    facts = shard_facts(files, name)
    ids: list[str] = files.table(name, "prompts")["id"].to_pylist()
    return [*ids, *facts["too_long"], *facts["no_tokens"]]


@dataclass
class ShardSums:
    """Sums over finished shards.

    Attributes:
        names: The shards that have rows.
        sizes: Their numbers of rows.
        dim: Width of the rows; 0 without rows.
        tokens: Number of tokens of the embedded texts.
        max_tokens: Length of the longest text that the embedder reads.
        too_long: Number of prompts that the embedder cannot read.
        no_tokens: Number of prompts without a token.
        time_sec: Seconds, summed over the shards.
    """

    names: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    dim: int = 0
    tokens: int = 0
    max_tokens: int = 0
    too_long: int = 0
    no_tokens: int = 0
    time_sec: float = 0.0

    @classmethod
    def of(cls, files: ShardFolder, names: Iterable[str]) -> ShardSums:
        """Return the sums over finished shards, with the shards in the given order."""
        sums = cls()
        for name in names:
            facts = shard_facts(files, name)
            if facts["rows"]:
                sums.names.append(name)
                sums.sizes.append(facts["rows"])
                sums.dim = facts["dim"]
            sums.tokens += facts["tokens"]
            sums.max_tokens = facts["max_tokens"]
            sums.too_long += len(facts["too_long"])
            sums.no_tokens += len(facts["no_tokens"])
            sums.time_sec += facts["time_sec"]
        return sums
