"""Files of weights and known clusters, read with checks of their ids. Main entry: `read_weights()`."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Container, Sequence
from pathlib import Path

import torch
from torch import Tensor

from latentwire.harness.errors import UserError
from latentwire.harness.results import JsonObject, numbered_rows


def read_rows(path: Path | str, columns: dict[str, type | tuple[type, ...]], made_by: str) -> list[JsonObject]:
    """Return the rows of a JSONL file, one object with a unique id per line.

    Args:
        path: The file.
        columns: The names and types of the columns that every row must have in addition to `id`.
        made_by: The task that writes this kind of file, for error messages.

    Raises:
        UserError: The file is missing or empty, a line is not an object with these columns, or an id occurs twice.
    """
    file, remedy = Path(path), f"make it again with: python run.py task={made_by}"
    if not file.is_file():
        raise UserError(f"{file}: no such file; make it with: python run.py task={made_by}")
    rows: list[JsonObject] = []
    seen: dict[str, int] = {}
    required = {"id": str, **columns}
    for number, row in numbered_rows(file, remedy):
        for name, kind in required.items():
            if not isinstance(row.get(name), kind) or isinstance(row[name], bool):
                raise UserError(f"{file}, line {number}: has no {name}, or one of another type; {remedy}")
        if row["id"] in seen:
            raise UserError(f"{file}, line {number}: the id {row['id']} is also on line {seen[row['id']]}; {remedy}")
        seen[row["id"]] = number
        rows.append(row)
    if not rows:
        raise UserError(f"{file}: is empty; {remedy}")
    return rows


def read_weights(path: Path | str) -> tuple[list[str], Tensor, Tensor]:
    """Return the ids, densities and weights in a weights.jsonl.

    Returns:
        N ids, the densities (N,) float64 and the sampling weights (N,) float64.

    Raises:
        UserError: The file cannot be read (see `read_rows`), or a number is negative or not finite.
    """
    rows = read_rows(path, {"density": (int, float), "weight": (int, float)}, "density")
    for row in rows:
        for name in ("density", "weight"):
            if not 0 <= row[name] < math.inf:
                raise UserError(
                    f"{path}: {name} {row[name]} of {row['id']}: must be finite and not negative; make it again with: "
                    "python run.py task=density"
                )
    numbers = torch.tensor([[row["density"], row["weight"]] for row in rows], dtype=torch.float64)
    return [row["id"] for row in rows], numbers[:, 0], numbers[:, 1]


def read_groups(path: Path | str) -> dict[str, int]:
    """Return the group of near-duplicates of each id in a weights.jsonl.

    Raises:
        UserError: The file cannot be read (see `read_rows`), or a row has no group.
    """
    return {row["id"]: row["group"] for row in read_rows(path, {"group": int}, "density")}


def read_clusters(path: Path | str, ids: Sequence[str]) -> Tensor:
    """Return the known cluster of each id.

    Args:
        path: A JSON file with the object `labels`, {id: number}; -1 is noise.
        ids: N ids.

    Returns:
        Cluster numbers, (N,) int64.

    Raises:
        UserError: The file is missing or has no readable labels, or an id has no label.
    """
    remedy = "give the clusters.json of task=cluster, or a JSON object with labels: {id: number}"
    if not Path(path).is_file():
        raise UserError(f"clusters_file={path}: no such file; {remedy}")
    try:
        labels = json.loads(Path(path).read_text(encoding="utf-8"))["labels"]
        known = {str(name): operator.index(number) for name, number in labels.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"clusters_file={path}: has no readable labels ({type(error).__name__}: {error}); {remedy}"
        ) from error
    return torch.tensor([known[name] for name in same_ids(ids, known, "embeddings", str(path))])


def same_ids(
    ids: Sequence[str], others: Container[str], here: str, there: str, remedy: str = "make both from the same prompts"
) -> Sequence[str]:
    """Return the ids after a check that all of them are among the others.

    Args:
        ids: The ids to check.
        others: A container of the known ids.
        here: The name of the file of `ids`, for the message.
        there: The name of the file of `others`, for the message.
        remedy: The advice at the end of the message.

    Raises:
        UserError: Some ids are missing. The message gives their number and one of them.
    """
    if missing := [name for name in ids if name not in others]:
        raise UserError(
            f"{here} and {there} do not match: {len(missing)} of {len(ids)} ids are only in the first, {missing[0]} "
            f"for instance; {remedy}"
        )
    return ids
