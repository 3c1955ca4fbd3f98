"""Folders of embeddings, as task=embed writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from kat.embedding.sharded import ShardedEmbeddings
from latentwire.harness.results import write_json
from latentwire.harness.shard_files import ShardFolder


def rounded(rows: torch.Tensor) -> torch.Tensor:
    """Return rows with the digits that a shard keeps, (N, D) float32."""
    return rows.half().float()


def write_embedding_folder(folder: Path, rows: torch.Tensor, sizes: Sequence[int]) -> ShardedEmbeddings:
    """Write unit rows (N, D) in shards of the given sizes. Prompt i has the id p000i and the source a or b in turn."""
    files, start = ShardFolder(folder, "key"), 0
    names = [f"{number:05d}" for number in range(len(sizes))]
    for name, size in zip(names, sizes, strict=True):
        numbers = range(start, start := start + size)
        table = pa.table(
            {"id": [f"p{i:04d}" for i in numbers], "source": ["ab"[i % 2] for i in numbers],
             "digest": [f"{i:08x}" for i in numbers], "excerpt": [f"prompt {i}" for i in numbers]}
        )  # fmt: skip
        files.save(name, {"emb": rows[numbers.start : numbers.stop].numpy().astype(np.float16)}, {"prompts": table})
    assert start == len(rows)
    write_json(
        folder / "embeddings.json",
        {"format": 2, "key": "key", "embedder": {}, "n": len(rows), "dim": rows.shape[1], "shards": names,
         "sizes": list(sizes)},
    )  # fmt: skip
    return ShardedEmbeddings.open(folder)
