"""Metrics of the diversity of a set of texts. Main entries: `measure()` and `measure_without()`.

A set is the K completions of one prompt, or one completion of each of M prompts. Empty texts count as copies of one
another, so a model that has collapsed to silence scores like one that repeats itself.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kat.diversity.bleu import Tokens, self_bleu, self_bleu_without

Array = NDArray[np.float64]
ORDERS = 5  # n-grams in the expectation-adjusted distinct-n


@dataclass(frozen=True)
class Metric:
    """A metric: its name, the direction of more diversity (1: higher, -1: lower, 0: neither), and its definition."""

    label: str
    direction: int
    definition: str


SET_METRICS = {
    "ead": Metric(
        "expectation-adjusted distinct-n", 1,
        "distinct n-grams divided by the expected number for uniform draws from all possible n-grams, mean over n = 1 "
        "to 5 (Liu et al. 2022, averaged as in Kirk et al. 2023). Empty texts have 0, and texts without repetition "
        "about 1. Values slightly above 1 occur, because uniform draws also repeat",
    ),
    "self_bleu": Metric(
        "self-BLEU", -1,
        "mean BLEU-4 of each text with the others as references (Zhu et al. 2018), 0 to 1; copies have 1",
    ),
    "embedding_distance": Metric(
        "embedding distance", 1, "mean of 1 - cosine over all pairs of texts, 0 to 2; copies have 0",
    ),
    "vendi": Metric(
        "Vendi score", 1,
        "effective number of texts, from 1 for copies to n: the exponential of the entropy of the eigenvalues of the "
        "cosine matrix over n (Friedman and Dieng 2023)",
    ),
    "compression_ratio": Metric(
        "compression ratio", -1,
        "bytes of the texts, one a line, divided by their bytes after zlib at level 9 (Shaib et al. 2024). Repetition "
        "raises it. Values below 1 are possible, because very short texts do not compress",
    ),
    "token_entropy": Metric(
        "token entropy", 1, "entropy of the distribution of tokens in the texts, in nats; 0 for a single token",
    ),
}  # fmt: skip


def measure(texts: Sequence[Tokens], strings: Sequence[str], kernel: Array, vocabulary: int) -> dict[str, float]:
    """Return all metrics of one set.

    Args:
        texts: The token ids of n texts, without end tokens; n at least 2.
        strings: The same texts as strings.
        kernel: Their cosines, (n, n), from `cosines`.
        vocabulary: The number of tokens in the vocabulary.
    """
    return {
        "ead": ead(texts, vocabulary),
        "self_bleu": self_bleu(texts),
        "embedding_distance": mean_distance(kernel),
        "vendi": vendi(kernel),
        "compression_ratio": compression_ratio(strings),
        "token_entropy": token_entropy(texts),
    }


def measure_without(
    texts: Sequence[Tokens], strings: Sequence[str], kernel: Array, vocabulary: int
) -> dict[str, Array]:
    """Return all metrics of a set without each text in turn, (n,) for each metric; n at least 3.

    Args:
        texts: See `measure`.
        strings: See `measure`.
        kernel: See `measure`.
        vocabulary: See `measure`.
    """
    n = len(texts)
    return {
        "ead": np.asarray(ead_without(texts, vocabulary)),
        "self_bleu": np.asarray(self_bleu_without(texts)),
        "embedding_distance": mean_distance_without(kernel),
        "vendi": np.asarray([vendi(np.delete(np.delete(kernel, i, 0), i, 1)) for i in range(n)]),
        "compression_ratio": np.asarray([compression_ratio([*strings[:i], *strings[i + 1 :]]) for i in range(n)]),
        "token_entropy": np.asarray(token_entropy_without(texts)),
    }


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


def cosines(emb: Array, empty: NDArray[np.bool_]) -> Array:
    """Return the cosines of all pairs of texts in a set, (..., n, n).

    Args:
        emb: Unit rows, (..., n, D). The rows of empty texts are ignored.
        empty: Marks for empty texts, (..., n). They have cosine 1 with one another and 0 with other texts.
    """
    rows = np.where(empty[..., None], 0.0, emb)
    kernel: Array = rows @ rows.swapaxes(-1, -2) + (empty[..., None] & empty[..., None, :])
    return kernel


def mean_distance(kernel: Array) -> float:
    """Return the mean of 1 - cosine over all pairs of texts in a set, in [0, 2].

    Args:
        kernel: The cosines, (n, n), n at least 2.
    """
    n = len(kernel)
    return float((1 - kernel)[~np.eye(n, dtype=bool)].sum() / (n * (n - 1)))


def mean_distance_without(kernel: Array) -> Array:
    """Return the mean distance of the set without each text in turn, (n,)."""
    n = len(kernel)
    distances = np.where(np.eye(n, dtype=bool), 0.0, 1 - kernel)
    result: Array = (distances.sum() - 2 * distances.sum(axis=1)) / ((n - 1) * (n - 2))
    return result


def vendi(kernel: Array) -> float:
    """Return the Vendi score of a set, the effective number of different texts, in [1, n].

    Source: Friedman and Dieng 2023, exp(-sum of p log p) over the eigenvalues p of kernel / n.

    Args:
        kernel: The cosines, (n, n), positive semi-definite, with 1 on the diagonal.
    """
    eigenvalues = np.linalg.eigvalsh(kernel / len(kernel))
    p = eigenvalues[eigenvalues > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_NOT_JUST = re.compile(r"(?:\bnot|n['’]t) just\b[^.!?;\n]*?\bbut\b", re.IGNORECASE)


def words(text: str) -> int:
    """Return the number of words; "don't" and "well-known" count as one word each."""
    return len(_WORD.findall(text))


def em_dashes(text: str) -> int:
    """Return the number of em-dashes, U+2014.

    En-dashes do not count, because ranges such as 1914–1918 contain them. Divide the number by words: sentence ends
    cannot be distinguished from abbreviations and decimals. Count in completions without their prompts.
    """
    return text.count("\N{EM DASH}")


def not_just_but(text: str) -> int:
    """Return the number of phrases "not just X but Y", also with "n't", within one sentence.

    Only the whole phrase counts, not a "not" in a text with the letters "but", as in "button".
    """
    return len(_NOT_JUST.findall(text))
