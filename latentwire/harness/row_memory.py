"""Memory and time of millions of rows. Main entries: `share_values()`, `paused_collection()`."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

MOST = 2**17  # values that are remembered at most


def share_values(row: dict[str, Any]) -> None:
    """Replace texts and numbers of a row by equal ones of earlier rows, which may not be changed.

    The configurations of a sweep have the same examples, so most of their rows' memory is taken once.

    Args:
        row: A row with `references` and `scores`; its other texts are shared too, except for the answer.
    """
    for name in ("id", "question", "passage"):
        if name in row:
            row[name] = _text(row[name])
    row["references"] = _texts(tuple(row["references"]))
    row["scores"] = _numbers(tuple(row["scores"].items()))


@lru_cache(maxsize=MOST)
def _text(text: str) -> str:
    return text


@lru_cache(maxsize=MOST)
def _texts(texts: tuple[str, ...]) -> list[str]:
    return [_text(text) for text in texts]


@lru_cache(maxsize=MOST)
def _numbers(items: tuple[tuple[str, float], ...]) -> dict[str, float]:
    return dict(items)


@contextlib.contextmanager
def paused_collection() -> Iterator[None]:
    """Pause the search for reference cycles during the `with` block.

    While many objects are made, Python reads all of them again and again to find cycles. Objects without cycles, such
    as rows, are freed as ever.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
