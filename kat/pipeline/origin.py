"""Checks that weights, embeddings and prompts belong together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from kat.data.prompts import Prompt, read_prompts
from kat.data.tables import read_weights, same_ids
from kat.pipeline.artifacts import record_of, sidecar_path
from latentwire.harness.assets import file_sha256
from latentwire.harness.errors import UserError
from latentwire.harness.progress import log
from latentwire.harness.results import read_json


def check_origin(weights: Path, embeddings: Path | None = None) -> None:
    """Refuse weights that are not those of their density.json, or were made from other embeddings than these.

    Raises:
        UserError: Says which file is not the one that the weights' record speaks of.
    """
    record = sidecar_path(weights, "density.json")
    if not record.is_file():
        log(f"note: {record} is not there, so it cannot be told what {weights} was made from")
        return
    found = read_json(record)
    for name, path in {"weights_sha256": weights, "embeddings_sha256": embeddings}.items():
        if path is not None and (not isinstance(found, dict) or found.get(name) != file_sha256(path)):
            raise UserError(f"{path}: is not the file that {record} speaks of; run task=density again")


def prompts_of(ids: list[str], path: Path, embeddings: Path) -> list[Prompt]:
    """Return the prompts in the order of the ids; those too long to have an embedding are counted, and left out."""
    prompts = {prompt.id: prompt for prompt in read_prompts(path)}
    found = [prompts[name] for name in same_ids(ids, prompts, "the embeddings", str(path))]
    without = prompts.keys() - set(ids)
    too_long = without & set(record_of(embeddings).get("too_long") or ())
    same_ids(
        sorted(without), too_long, f"{path} (prompts without an embedding)", str(embeddings), "run task=embed again"
    )
    if too_long:
        log(f"note: {len(too_long)} of {len(prompts)} prompts are too long for the embedder: no embedding, no weight")
    return found


def density_of(ids: Sequence[str], path: Path, embeddings: Path) -> tuple[Tensor, Tensor]:
    """Return densities and weights of these embeddings, in the order of their ids."""
    names, crowding, weights = read_weights(path)
    check_origin(path, embeddings)
    row = {name: i for i, name in enumerate(names)}
    order = torch.tensor(
        [row[name] for name in same_ids(ids, row, str(embeddings), str(path), "run task=density again")]
    )
    same_ids(names, set(ids), str(path), str(embeddings), "run task=density again")
    return crowding[order], weights[order]
