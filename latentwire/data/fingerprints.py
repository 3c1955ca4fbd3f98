"""Fingerprints of texts, and the search for passages inside texts. Main entries: `fingerprint()`, `holder()`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

BEGINNING = 8  # first words of a passage, by which it is indexed


def fingerprint(text: str) -> str:
    """Return 16 hexadecimal digits of the sha256 of a text's words. White space and case do not matter."""
    return hashlib.sha256(_words(text).encode()).hexdigest()[:16]


def _words(text: str) -> str:
    return " ".join(text.lower().split())


def holder(texts: Iterable[str]) -> Callable[[str], bool]:
    """Return a function that tells whether a text contains one of these texts, word for word.

    White space and case do not matter.
    """
    starts: dict[tuple[str, ...], list[list[str]]] = {}
    for words in (_words(text).split(" ") for text in texts):
        starts.setdefault(tuple(words[:BEGINNING]), []).append(words)
    sizes = {len(start) for start in starts}

    def holds(text: str) -> bool:
        words = _words(text).split(" ")
        return any(
            words[index : index + len(contained)] == contained
            for size in sizes
            for index in range(len(words) - size + 1)
            for contained in starts.get(tuple(words[index : index + size]), ())
        )

    return holds
