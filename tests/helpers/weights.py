"""Folders of weights, as task=density writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from latentwire.harness.assets import file_sha256
from latentwire.harness.results import write_json
from latentwire.harness.shard_files import ShardFolder


def write_weight_folder(
    folder: Path,
    weights: Sequence[float],
    shards: Sequence[Sequence[str]],
    groups: Sequence[int] = (),
    **record: object,
) -> Path:
    """Write weights of prompts in shards: the ids of each shard. Fields of `record` replace fields of density.json."""
    values = np.asarray(weights, dtype=np.float64) / np.sum(weights)
    group_of = np.asarray(groups or range(len(values)))
    files, start = ShardFolder(folder, "key"), 0
    names = [f"{number:05d}" for number in range(len(shards))]
    for name, ids in zip(names, shards, strict=True):
        rows = slice(start, start := start + len(ids))
        table = pa.table(
            {"id": list(ids), "source": ["mine"] * len(ids), "density": 1 / values[rows].clip(1e-9),
             "weight": values[rows], "group": group_of[rows]}
        )  # fmt: skip
        files.save(name, tables={"prompts": table})
    np.save(folder / "weights.npy", values)
    described = {"format": 2, "settings": {}, "seed": 0, "embeddings_sha256": "", "versions": {}, "git_commit": None}
    weights_sha256 = file_sha256(folder / "weights.npy")
    sizes = [len(ids) for ids in shards]
    described |= {"weights_sha256": weights_sha256, "shards": names, "sizes": sizes, **record}
    write_json(folder / "density.json", described)
    return folder
