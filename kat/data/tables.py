"""Files of weights and known clusters, read with checks of their ids. Main entry: `read_weights()`."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from latentwire.harness.errors import UserError
from latentwire.harness.results import numbered_rows


def read_numbers(
    path: Path | str, columns: Mapping[str, type[int] | type[float]], made_by: str
) -> dict[str, list[float]]:
    """Return the numbers in columns of a JSONL file, one object with a unique id per line.

    Args:
        path: The file.
        columns: The columns that every row must have in addition to `id`: int for whole numbers, float for any.
        made_by: The task that writes this kind of file, for error messages.

    Returns:
        By id, the numbers of a row in the order of `columns`.

    Raises:
        UserError: The file is missing or empty, a line is not an object with these columns, or an id occurs twice.
    """
    file, remedy = Path(path), f"make it again with: python run.py task={made_by}"
    if not file.is_file():
        raise UserError(f"{file}: no such file; make it with: python run.py task={made_by}")
    rows: dict[str, list[float]] = {}
    line_of: dict[str, int] = {}
    for line, row in numbered_rows(file, remedy):
        place, identifier, numbers = f"{file}, line {line}", row.get("id"), []
        if not isinstance(identifier, str):
            raise UserError(f"{place}: has no id, or one of another type; {remedy}")
        for name, kind in columns.items():
            number = row.get(name)
            fits = kind is float or isinstance(number, int)
            if not isinstance(number, int | float) or isinstance(number, bool) or not fits:
                raise UserError(f"{place}: has no {name}, or one of another type; {remedy}")
            numbers.append(number)
        if identifier in rows:
            raise UserError(f"{place}: the id {identifier} is also on line {line_of[identifier]}; {remedy}")
        rows[identifier], line_of[identifier] = numbers, line
    if not rows:
        raise UserError(f"{file}: is empty; {remedy}")
    return rows


def read_weights(path: Path | str) -> tuple[list[str], Tensor, Tensor]:
    """Return the ids, densities and weights in a weights.jsonl.

    Returns:
        N ids, the densities (N,) float64 and the sampling weights (N,) float64.

    Raises:
        UserError: The file cannot be read (see `read_numbers`), or a number is negative or not finite.
    """
    columns = {"density": float, "weight": float}
    rows = read_numbers(path, columns, "density")
    for identifier, numbers in rows.items():
        for name, number in zip(columns, numbers, strict=True):
            if not 0 <= number < math.inf:
                raise UserError(
                    f"{path}: {name} {number} of {identifier}: must be finite and not negative; make it again with: "
                    "python run.py task=density"
                )
    table = torch.tensor(list(rows.values()), dtype=torch.float64)  # (N, 2)
    return list(rows), table[:, 0], table[:, 1]


def read_groups(path: Path | str) -> dict[str, int]:
    """Return the group of near-duplicates of each id in a weights.jsonl.

    Raises:
        UserError: The file cannot be read (see `read_numbers`), or a row has no group.
    """
    rows = read_numbers(path, {"group": int}, "density")
    return {identifier: int(group) for identifier, (group,) in rows.items()}


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
