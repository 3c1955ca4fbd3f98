"""Memory and time of millions of rows. Main entries: `shared_text()`, `paused_collection()`."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from functools import lru_cache

MOST = 2**17  # values that are remembered at most


@lru_cache(maxsize=MOST)
def shared_text(text: str) -> str:
    """Return the first text that equals this one, so that equal texts take their memory once."""
    return text


@lru_cache(maxsize=MOST)
def shared_texts(texts: tuple[str, ...]) -> list[str]:
    """Return the list of some texts, the same list for equal texts. It may not be changed."""
    return [shared_text(text) for text in texts]


@lru_cache(maxsize=MOST)
def shared_numbers(items: tuple[tuple[str, float], ...]) -> dict[str, float]:
    """Return numbers by name, the same dict for equal items. It may not be changed."""
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
