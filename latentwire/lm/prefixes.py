"""The beginning that sequences share. Main entry: `common_beginning()`."""

from __future__ import annotations

from collections.abc import Sequence


def common_beginning(sequences: Sequence[Sequence[object]]) -> int:
    """Return the length of the beginning that all sequences share; each keeps at least one element after it.

    Args:
        sequences: Sequences of comparable elements, such as token ids or characters. Fewer than two share nothing.
    """
    if len(sequences) < 2:
        return 0
    first, *others = sequences
    length = max(min(map(len, sequences)) - 1, 0)
    for other in others:
        length = next((i for i in range(length) if first[i] != other[i]), length)
    return length
