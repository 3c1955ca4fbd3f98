"""Checks that weights, embeddings and prompts belong together. Main entries: `prompts_of()`, `recorded_density()`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from kat.data.prompts import Prompt, read_prompts
from kat.data.tables import read_weights, same_ids
from kat.density.gates import require_crowd_gate
from kat.density.records import DensityOrigin, GatedWeights
from kat.embedding.sharded import ShardedEmbeddings
from kat.embedding.store import too_long_ids
from kat.pipeline.artifacts import sidecar_path
from kat.records import read_kat_record
from kat.sampling.weight_files import WeightFolder
from latentwire.harness.assets import file_sha256
from latentwire.harness.errors import UserError
from latentwire.harness.progress import log
from latentwire.harness.shard_files import is_sharded


def check_origin(weights: Path, embeddings: Path | None = None) -> None:
    """Check the hashes of weights, and of their embeddings if given, against the density.json of the weights.

    Args:
        weights: The file of the weights.
        embeddings: The file of the embeddings.

    Raises:
        UserError: A file is not the one that density.json describes.
    """
    record = sidecar_path(weights, "density.json")
    if not record.is_file():
        log(f"note: {record} does not exist, so the origin of {weights} is unknown")
        return
    found = read_kat_record(DensityOrigin, record, "run task=density again")
    for path, digest in ((weights, found["weights_sha256"]), (embeddings, found["embeddings_sha256"])):
        if path is not None and digest != file_sha256(path):
            raise UserError(f"{path}: is not the file that {record} describes; run task=density again")


def check_crowd_gate(weights: Path, force: bool) -> None:
    """Check that weights passed the crowd gate when they were made. Weights without a density.json are used unchecked.

    Args:
        weights: The file or the folder of the weights.
        force: Whether weights that fail it are accepted, with a warning.

    Raises:
        UserError: A planted crowd is drawn as often as uniformly or more often, or the file has no gates.
    """
    record = weights / "density.json" if is_sharded(weights) else sidecar_path(weights, "density.json")
    if not record.is_file():
        log(f"note: {record} does not exist, so it is unknown whether {weights} feeds crowds")
        return
    gates = read_kat_record(GatedWeights, record, "run task=density again")["gates"]
    if gates["crowd_ratio"] is None:
        log(f"note: {weights} has too few different prompts to plant a crowd, so it is unknown whether it feeds crowds")
    try:
        require_crowd_gate(gates, str(weights))
    except UserError as error:
        if not force:
            raise
        log(f"warning: force_weights=true: {error}")


def prompts_of(ids: list[str], path: Path, embeddings: Path) -> list[Prompt]:
    """Return the prompts of embeddings, in the order of the ids, without prompts that were too long to embed.

    Args:
        ids: The ids of the embeddings.
        path: The file of the prompts.
        embeddings: The file of the embeddings.

    Raises:
        UserError: An id has no prompt, or a prompt has no embedding and was not too long.
    """
    prompts = {prompt.id: prompt for prompt in read_prompts(path)}
    found = [prompts[name] for name in same_ids(ids, prompts, "the embeddings", str(path))]
    without = prompts.keys() - set(ids)
    too_long = without & set(too_long_ids(embeddings))
    here = f"{path} (prompts without an embedding)"
    same_ids(sorted(without), too_long, here, str(embeddings), "run task=embed again")
    if too_long:
        log(f"note: {len(too_long)} of {len(prompts)} prompts are too long for the embedder: no embedding, no weight")
    return found


def require_same_shards(weights: WeightFolder, emb: ShardedEmbeddings) -> None:
    """Check that weights in shards were made from embeddings in shards.

    Raises:
        UserError: They were made from others.
    """
    if weights.record["embeddings_sha256"] != emb.digest:
        raise UserError(
            f"{weights.files.folder}: was made from other embeddings than {emb.files.folder}; run task=density again"
        )


def recorded_density(ids: Sequence[str], path: Path, embeddings: Path) -> tuple[Tensor, Tensor]:
    """Return the densities and weights of embeddings, in the order of the ids.

    Args:
        ids: The N ids of the embeddings.
        path: The file of the weights.
        embeddings: The file of the embeddings.

    Returns:
        The densities (N,) float64 and the sampling weights (N,) float64.

    Raises:
        UserError: The weights were made from other embeddings, or their ids differ.
    """
    names, density, weights = read_weights(path)
    check_origin(path, embeddings)
    row = {name: i for i, name in enumerate(names)}
    remedy = "run task=density again"
    order = torch.tensor([row[name] for name in same_ids(ids, row, str(embeddings), str(path), remedy)])
    same_ids(names, set(ids), str(path), str(embeddings), remedy)
    return density[order], weights[order]
