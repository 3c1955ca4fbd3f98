"""Columns of a data set that stay with its pairs and prompts, for reward functions. Main entry: `kept_columns()`."""

from __future__ import annotations

import math
from collections.abc import Collection

from latentwire.harness.results import JsonObject

ARGUMENTS = ("prompts", "completions", "completion_ids")  # what a reward function receives besides the columns
PROMPT_FIELDS = ("id", "prompt", "text", "source", "multiplicity", "sources", "splits")  # own fields of a prompts file
PAIR_FIELDS = ("id", "prompt", "chosen", "rejected", "source", "split")  # own fields of a pairs file
RESERVED = frozenset((*ARGUMENTS, *PROMPT_FIELDS, *PAIR_FIELDS))


def kept_columns(row: JsonObject, used: Collection[str]) -> tuple[JsonObject, list[str]]:
    """Return the columns of a row that stay with its pairs, and the names of those that JSON cannot hold.

    A column with the name of an own field, such as id, is kept as id_ (and id_ as id__).

    Args:
        row: A row of a data set.
        used: Columns that are in the pairs already.
    """
    kept: JsonObject = {}
    unfit = []
    for column, value in row.items():
        if column in used:
            continue
        if not fits_json(value) or not fits_json(column):
            unfit.append(column)
            continue
        kept[f"{column}_" if column.rstrip("_") in RESERVED else column] = value
    return kept, unfit


def fits_json(value: object) -> bool:
    """Return whether a JSON file can hold a value: no NaN, no dates, no bytes, no invalid Unicode."""
    if isinstance(value, str):
        return is_unicode(value)
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list):
        return all(map(fits_json, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and fits_json(key) and fits_json(part) for key, part in value.items())
    return value is None or isinstance(value, bool | int)


def is_unicode(text: str) -> bool:
    """Return whether a text is valid Unicode: it has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
