"""Repetition in a set of texts: distinct n-grams, entropy of tokens, compression. Main entry: `ead()`."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Sequence

from kat.diversity.bleu import Tokens

ORDERS = 5  # n-grams in the expectation-adjusted distinct-n


def ead(texts: Sequence[Tokens], vocabulary: int) -> float:
    """Return the expectation-adjusted distinct-n of a set, the mean over n = 1 to 5.

    Source: Liu et al. 2022, N / (V (1 - ((V - 1) / V)^C)) for N distinct tokens among C and a vocabulary of V. For
    n-grams, V is replaced by V^n, the number of possible n-grams. Liu et al. keep V, which gives values far above 1
    once C exceeds V. N-grams do not cross texts. Orders for which every text is too short are left out, and a set
    without tokens has 0.

    For sets much smaller than the vocabulary the expected number is nearly C, so the adjustment for length is small.
    Compare texts of matched lengths.

    Args:
        texts: The token ids of the texts.
        vocabulary: V, the number of tokens in the vocabulary.
    """
    return _ead(list(map(_Counts, _n_grams(texts))), None, vocabulary)


def ead_without(texts: Sequence[Tokens], vocabulary: int) -> list[float]:
    """Return the expectation-adjusted distinct-n of the set without each text in turn, n values."""
    orders = list(map(_Counts, _n_grams(texts)))
    return [_ead(orders, i, vocabulary) for i in range(len(texts))]


def _n_grams(texts: Sequence[Tokens]) -> list[list[Counter[tuple[int, ...]]]]:
    """Return the n-gram counts of each text, for each n."""
    return [
        [Counter(tuple(text[start : start + n]) for start in range(len(text) - n + 1)) for text in texts]
        for n in range(1, ORDERS + 1)
    ]


class _Counts:
    """The n-gram counts of a set, with and without one of its texts."""

    def __init__(self, own: Sequence[Counter[tuple[int, ...]]]) -> None:
        self.own = own
        self.all: Counter[tuple[int, ...]] = Counter()
        for counts in own:
            self.all.update(counts)

    def total(self, without: int | None) -> int:
        """Return the number of n-grams, without one text if given."""
        return self.all.total() - (0 if without is None else self.own[without].total())

    def distinct(self, without: int | None) -> int:
        """Return the number of different n-grams, without one text if given."""
        removed = {} if without is None else self.own[without]
        return len(self.all) - sum(self.all[gram] == count for gram, count in removed.items())


def _ead(orders: Sequence[_Counts], without: int | None, vocabulary: int) -> float:
    ratios = []
    for n, counts in enumerate(orders, 1):
        if total := counts.total(without):
            possible = float(vocabulary) ** n
            expected = -possible * math.expm1(total * math.log1p(-1 / possible))
            ratios.append(counts.distinct(without) / expected)
    return sum(ratios) / len(ratios) if ratios else 0.0


def token_entropy(texts: Sequence[Tokens]) -> float:
    """Return the entropy of the C tokens of all texts together, in nats, from 0 to log C; 0 without tokens."""
    return _entropy(Counter(token for text in texts for token in text))


def token_entropy_without(texts: Sequence[Tokens]) -> list[float]:
    """Return the token entropy of the set without each text in turn, n values."""
    together = Counter(token for text in texts for token in text)
    return [_entropy(together - Counter(text)) for text in texts]


def _entropy(counts: Counter[int]) -> float:
    total = counts.total()
    return math.log(total) - sum(c * math.log(c) for c in counts.values()) / total if total else 0.0


def compression_ratio(strings: Sequence[str]) -> float:
    """Return the bytes of the texts, one a line in UTF-8, divided by their bytes after zlib at level 9.

    zlib finds repetition up to 32 KiB back. The order of the texts, which is the order of the prompts, matters
    slightly. n empty texts have the ratio n, like n copies stored once.
    """
    if not any(strings):
        return float(len(strings))
    raw = "\n".join(strings).encode()
    return len(raw) / len(zlib.compress(raw, 9))
