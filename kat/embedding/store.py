"""The file embeddings.pt, with checks of its ids and rows, and its record. Main entry: `load_embeddings()`."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from kat.records import EmbeddingsRecord, read_kat_record
from latentwire.harness.errors import UserError
from latentwire.harness.results import open_atomically, writing


def save_embeddings(path: Path, ids: Sequence[str], emb: Tensor) -> None:
    """Write {"ids": N ids, "emb": (N, D)} to a file, completely or not at all."""
    assert len(ids) == len(emb)
    with open_atomically(path) as file, writing(path):
        torch.save({"ids": list(ids), "emb": emb.contiguous()}, file)


def load_embeddings(path: Path | str) -> tuple[list[str], Tensor]:
    """Return the ids and rows in a file of embeddings.

    Returns:
        N different ids, and rows of length 1, (N, D) float32.

    Raises:
        UserError: The file is missing, damaged or of another kind. Or ids are repeated or do not match the rows, or
            a row is not finite or not of length 1.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(
            f"embeddings file {path}: is a folder of shards, and one file is needed here; make it with task=embed "
            "out=FILE.pt"
        )
    if not path.is_file():
        raise UserError(f"embeddings file {path}: no such file; make it with task=embed")
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch.load documents no exception types; any means that the file is not ours
        kind = "a damaged file" if zipfile.is_zipfile(path) else "not a file of torch.save"
        raise UserError(f"embeddings file {path}: {kind} ({type(error).__name__}); make it with task=embed") from error
    remedy = "make it again with task=embed"
    if not isinstance(content, dict) or not {"ids", "emb"} <= content.keys():
        raise UserError(f'embeddings file {path}: does not contain {{"ids", "emb"}}; {remedy}')
    ids, emb = content["ids"], content["emb"]
    if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
        raise UserError(f"embeddings file {path}: ids is not a list of texts; {remedy}")
    if not isinstance(emb, Tensor) or emb.ndim != 2 or not emb.is_floating_point():
        raise UserError(f"embeddings file {path}: emb is not an (N, D) matrix of floating-point numbers; {remedy}")
    if len(ids) != len(emb):
        raise UserError(f"embeddings file {path}: {len(ids)} ids for {len(emb)} rows; {remedy}")
    if not ids or emb.shape[1] == 0:
        raise UserError(f"embeddings file {path}: contains no embeddings; {remedy}")
    if len(set(ids)) < len(ids):
        repeated = next(name for i, name in enumerate(ids) if name in ids[:i])
        raise UserError(f"embeddings file {path}: the id {repeated} occurs twice; {remedy}")
    emb = emb.float()
    norms = emb.norm(dim=1)
    wrong = (~((norms - 1).abs() < 1e-3)).nonzero().flatten()  # includes NaN
    if len(wrong):
        row = int(wrong[0])
        fault = f"has length {norms[row]:.4g}, not 1" if bool(torch.isfinite(norms[row])) else "holds NaN or infinity"
        raise UserError(
            f"embeddings file {path}: the row of id {ids[row]} {fault} ({len(wrong)} such rows); divide each row by "
            f"its length, or {remedy}"
        )
    return ids, emb


def record_of(embeddings: Path) -> EmbeddingsRecord | None:
    """Return the record that task=embed wrote for its embeddings; None for embeddings without a record.

    Raises:
        UserError: The file next to the embeddings is not such a record.
    """
    path = embeddings.with_suffix(".json")
    remedy = f"make the embeddings again with task=embed, or move {path.name} away to use them without a record"
    return read_kat_record(EmbeddingsRecord, path, remedy) if path.is_file() else None


def too_long_ids(embeddings: Path) -> list[str]:
    """Return the ids of the prompts that were too long for the embedder of a file of embeddings, as recorded."""
    record = record_of(embeddings)
    return [] if record is None else record["too_long"]
