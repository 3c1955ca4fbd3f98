"""Which passages contain which: fingerprints of texts, and the search for one text inside another."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

BEGINNING = 8  # words by which a passage is looked for in others


def fingerprint(text: str) -> str:
    """Return what two passages of equal words share, 16 hexadecimal digits: white space and case do not count."""
    return hashlib.sha256(_words(text).encode()).hexdigest()[:16]


def _words(text: str) -> str:
    return " ".join(text.lower().split())


def holder(texts: Iterable[str]) -> Callable[[str], bool]:
    """Return what tells whether a text holds one of these, word for word; white space and case do not count."""
    starts: dict[tuple[str, ...], list[list[str]]] = {}
    for words in (_words(text).split(" ") for text in texts):
        starts.setdefault(tuple(words[:BEGINNING]), []).append(words)
    sizes = {len(start) for start in starts}

    def holds(text: str) -> bool:
        said = _words(text).split(" ")
        return any(
            said[place : place + len(own)] == own
            for size in sizes
            for place in range(len(said) - size + 1)
            for own in starts.get(tuple(said[place : place + size]), ())
        )

    return holds
