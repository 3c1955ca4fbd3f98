"""Diversity of a set of texts: what copies score, what different texts score, and the set without each of its texts.

A set is the K completions of one prompt, or one completion of each of M prompts. Empty texts are copies of one another:
a set of nothing else scores as a set of copies does, so a model that has collapsed to silence is not left out.
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
    """A metric of a set: its name in words, which way lies more diversity (1: higher, -1: lower), and what it is."""

    label: str
    direction: int
    definition: str


SET_METRICS = {
    "ead": Metric(
        "expectation-adjusted distinct-n", 1,
        "distinct n-grams over the number expected of as many even draws from all there could be, mean of n = 1 to 5 "
        "(Liu et al. 2022, averaged as Kirk et al. 2023 do); 0 for nothing, about 1 for no repetition, slightly above "
        "where even chance would repeat",
    ),
    "self_bleu": Metric(
        "self-BLEU", -1,
        "mean BLEU-4 of each text with the others as references (Zhu et al. 2018), 0 to 1; 1 for copies",
    ),
    "embedding_distance": Metric(
        "embedding distance", 1, "mean of 1 - cosine over all pairs of texts, 0 to 2; 0 for copies",
    ),
    "vendi": Metric(
        "Vendi score", 1,
        "exponential of the entropy of the eigenvalues of the cosine matrix over n (Friedman and Dieng 2023), the "
        "effective number of texts, 1 for copies to n",
    ),
    "compression_ratio": Metric(
        "compression ratio", -1,
        "bytes of the texts, a line each, over the same compressed by zlib at level 9 (Shaib et al. 2024); higher for "
        "repetition; below 1 is possible, as a few bytes do not compress",
    ),
    "token_entropy": Metric(
        "token entropy", 1, "entropy of the distribution of tokens in the texts, in nats, from 0 for a single token",
    ),
}  # fmt: skip


def measure(texts: Sequence[Tokens], strings: Sequence[str], kernel: Array, vocabulary: int) -> dict[str, float]:
    """Return all metrics of one set.

    Args:
        texts: Token ids of the n texts, without end tokens; n at least 2.
        strings: The same as strings.
        kernel: Their cosines, (n, n), of `cosines`.
        vocabulary: Number of tokens there are.
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
    """Return all metrics of a set of n at least 3 texts without each of them in turn, (n,) each; see `measure`."""
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

    Liu et al. 2022: N / (V (1 - ((V - 1) / V)^C)) for N distinct among C tokens and a vocabulary of V. For n-grams we
    put V^n, the number of those there could be, where they keep V, which gives values far above 1 once C exceeds V.
    N-grams do not run from one text into the next. Orders for which every text is too short are left out; without a
    token it is 0. For sets much smaller than the vocabulary the expectation is nearly C, so this corrects little for
    length; comparing texts of matched lengths does.
    """
    return _ead(list(map(_Counts, _n_grams(texts))), None, vocabulary)


def ead_without(texts: Sequence[Tokens], vocabulary: int) -> list[float]:
    """Return the expectation-adjusted distinct-n of the others for each text left out, (n,)."""
    orders = list(map(_Counts, _n_grams(texts)))
    return [_ead(orders, i, vocabulary) for i in range(len(texts))]


def _n_grams(texts: Sequence[Tokens]) -> list[list[Counter[tuple[int, ...]]]]:
    """Return the n-grams of each text, by order."""
    return [
        [Counter(tuple(text[start : start + n]) for start in range(len(text) - n + 1)) for text in texts]
        for n in range(1, ORDERS + 1)
    ]


class _Counts:
    """How often things occur in the texts of a set, in all of them and in all but one."""

    def __init__(self, own: Sequence[Counter[tuple[int, ...]]]) -> None:
        self.own = own
        self.all: Counter[tuple[int, ...]] = Counter()
        for counts in own:
            self.all.update(counts)

    def total(self, without: int | None) -> int:
        """Return how many there are."""
        return self.all.total() - (0 if without is None else self.own[without].total())

    def distinct(self, without: int | None) -> int:
        """Return how many different ones there are."""
        gone = {} if without is None else self.own[without]
        return len(self.all) - sum(self.all[thing] == count for thing, count in gone.items())


def _ead(orders: Sequence[_Counts], without: int | None, vocabulary: int) -> float:
    ratios = []
    for n, counts in enumerate(orders, 1):
        if total := counts.total(without):
            possible = float(vocabulary) ** n
            expected = -possible * math.expm1(total * math.log1p(-1 / possible))
            ratios.append(counts.distinct(without) / expected)
    return sum(ratios) / len(ratios) if ratios else 0.0


def token_entropy(texts: Sequence[Tokens]) -> float:
    """Return the entropy of the tokens of all texts together, in nats, in [0, log C] for C tokens; 0 without any."""
    return _entropy(Counter(token for text in texts for token in text))


def token_entropy_without(texts: Sequence[Tokens]) -> list[float]:
    """Return the entropy of the tokens of the others for each text left out, (n,)."""
    together = Counter(token for text in texts for token in text)
    return [_entropy(together - Counter(text)) for text in texts]


def _entropy(counts: Counter[int]) -> float:
    total = counts.total()
    return math.log(total) - sum(c * math.log(c) for c in counts.values()) / total if total else 0.0


def compression_ratio(strings: Sequence[str]) -> float:
    """Return the size of texts, a line each in UTF-8, over their size compressed by zlib at level 9.

    zlib looks back 32 KiB: what repeats at a longer distance is not seen. The order of the texts matters a little; it
    is that of the prompts. n empty texts have the ratio n: n copies that take the room of one.
    """
    if not any(strings):
        return float(len(strings))
    raw = "\n".join(strings).encode()
    return len(raw) / len(zlib.compress(raw, 9))


def cosines(emb: Array, empty: NDArray[np.bool_]) -> Array:
    """Return the cosines of a set: (..., n, D) unit rows -> (..., n, n).

    Args:
        emb: Unit rows; those of empty texts are not looked at.
        empty: Which texts are empty, (..., n): they have cosine 1 with one another and 0 with all others.
    """
    rows = np.where(empty[..., None], 0.0, emb)
    kernel: Array = rows @ rows.swapaxes(-1, -2) + (empty[..., None] & empty[..., None, :])
    return kernel


def mean_distance(kernel: Array) -> float:
    """Return the mean of 1 - cosine over the pairs of different texts of a set, in [0, 2].

    Args:
        kernel: Cosines, (n, n), n at least 2.
    """
    n = len(kernel)
    return float((1 - kernel)[~np.eye(n, dtype=bool)].sum() / (n * (n - 1)))


def mean_distance_without(kernel: Array) -> Array:
    """Return the mean distance of the others for each text left out, (n,)."""
    n = len(kernel)
    distances = np.where(np.eye(n, dtype=bool), 0.0, 1 - kernel)
    result: Array = (distances.sum() - 2 * distances.sum(axis=1)) / ((n - 1) * (n - 2))
    return result


def vendi(kernel: Array) -> float:
    """Return the Vendi score of a set, its effective number of different texts, in [1, n].

    Friedman and Dieng 2023: exp(-sum of p log p) over the eigenvalues p of kernel / n.

    Args:
        kernel: Cosines, (n, n): positive semi-definite, with 1 on the diagonal.
    """
    eigenvalues = np.linalg.eigvalsh(kernel / len(kernel))
    p = eigenvalues[eigenvalues > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_NOT_JUST = re.compile(r"(?:\bnot|n['’]t) just\b[^.!?;\n]*?\bbut\b", re.IGNORECASE)


def words(text: str) -> int:
    """Return the number of words; "don't" and "well-known" are one each."""
    return len(_WORD.findall(text))


def em_dashes(text: str) -> int:
    """Return the number of em-dashes, U+2014.

    En-dashes are not among them: they stand in ranges such as 1914–1918. To be divided by words, not by sentences,
    which cannot be told from abbreviations and decimals; and to be counted in completions without their prompts.
    """
    return text.count("\N{EM DASH}")


def not_just_but(text: str) -> int:
    """Return the number of constructions "not just X but Y", also with "n't", within one sentence.

    The whole construction is looked for: the word "not" in a text that has the letters "but" somewhere ("button") is
    none.
    """
    return len(_NOT_JUST.findall(text))
