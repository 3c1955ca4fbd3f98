"""Weights, known clusters and the prompts of pairs as files, read with their ids checked against other files."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentwire.harness.errors import UserError
from latentwire.harness.results import numbered_rows


def read_rows(
    path: Path | str, columns: dict[str, type | tuple[type, ...]], made_by: str, key: str = "id"
) -> list[dict[str, Any]]:
    """Read a JSONL file of one object with a unique id per line.

    Args:
        path: The file.
        columns: Names and types that every row must have, besides the id.
        made_by: The task that writes such a file, for messages.
        key: Column of the id.

    Raises:
        UserError: No such file, a line that is no such object, a missing column, a duplicate id, no rows at all.
    """
    file, remedy = Path(path), f"make it again with: python run.py task={made_by}"
    if not file.is_file():
        raise UserError(f"{file}: no such file; make it with: python run.py task={made_by}")
    rows: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    wanted = {key: str, **columns}
    for number, row in numbered_rows(file, remedy):
        for name, kind in wanted.items():
            if not isinstance(row.get(name), kind) or isinstance(row[name], bool):
                raise UserError(f"{file}, line {number}: has no {name}, or one of another type; {remedy}")
        if row[key] in seen:
            raise UserError(f"{file}, line {number}: {key} {row[key]} is that of line {seen[row[key]]} too; {remedy}")
        seen[row[key]] = number
        rows.append(row)
    if not rows:
        raise UserError(f"{file}: is empty; {remedy}")
    return rows


def read_weights(path: Path | str) -> tuple[list[str], Tensor, Tensor]:
    """Read ids, densities (N,) and weights (N,), both float64.

    Raises:
        UserError: Also for numbers that are not finite or negative.
    """
    rows = read_rows(path, {"density": (int, float), "weight": (int, float)}, "density")
    for row in rows:
        for name in ("density", "weight"):
            if not 0 <= row[name] < math.inf:
                raise UserError(
                    f"{path}: {name} {row[name]} of {row['id']}; make it again with: python run.py task=density"
                )
    numbers = torch.tensor([[row["density"], row["weight"]] for row in rows], dtype=torch.float64)
    return [row["id"] for row in rows], numbers[:, 0], numbers[:, 1]


def read_pair_to_prompt(path: Path | str) -> tuple[list[str], list[str]]:
    """Read the pair_to_prompt.jsonl of task=prompts: ids of the P pairs, and the prompt id of each.

    The prompt ids are what `kat.sampling.sampler.pair_weights` takes; it says what becomes of prompts without a weight, such as
    those too long for the embedder.

    Raises:
        UserError: As `read_rows` says.
    """
    rows = read_rows(path, {"prompt_id": str}, "prompts", key="pair_id")
    return [row["pair_id"] for row in rows], [row["prompt_id"] for row in rows]


def read_clusters(path: Path | str, ids: Sequence[str]) -> Tensor:
    """Read the cluster number of each id, (N,) int64: a JSON object with `labels`, {id: number}, -1 for noise."""
    remedy = "give the clusters.json of task=cluster, or a JSON object with labels: {id: number}"
    if not Path(path).is_file():
        raise UserError(f"clusters_file={path}: no such file; {remedy}")
    try:
        labels = json.loads(Path(path).read_text(encoding="utf-8"))["labels"]
        known = {str(name): operator.index(number) for name, number in labels.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"clusters_file={path}: has no labels that can be read ({type(error).__name__}: {error}); {remedy}"
        ) from error
    return torch.tensor([known[name] for name in same_ids(ids, known, "embeddings", str(path))])


def same_ids(
    ids: Sequence[str], others: Any, here: str, there: str, remedy: str = "make both from the same prompts"
) -> Sequence[str]:
    """Return ids if all of them are among the others.

    Raises:
        UserError: Some are not; counts them and names one.
    """
    if missing := [name for name in ids if name not in others]:
        raise UserError(
            f"{here} and {there} do not fit: {len(missing)} of {len(ids)} ids are only in the first, {missing[0]} for "
            f"instance; {remedy}"
        )
    return ids
