"""Self-BLEU of a set of token sequences, and of the set without each of them.

Written here and not taken from sacrebleu, which the tests hold it to: leaving each of M texts out in turn asks for M^2
sentence scores, and a library that takes the references in anew for each of them needs M^3 steps.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

ORDERS = 4  # BLEU-4
Tokens = Sequence[int]


def self_bleu(texts: Sequence[Tokens]) -> float:
    """Return the mean BLEU of each text with all the others as its references, in [0, 1]; 1 for copies.

    Zhu et al. 2018 (Texygen), over token ids, with the sentence BLEU of sacrebleu (effective order, so that texts of
    fewer than four tokens count too, and exponential smoothing). An empty text has BLEU 1 if another one is empty too,
    as copies have, and else 0.

    Args:
        texts: At least two token sequences.
    """
    overlap = _Overlap(texts)
    return sum(overlap.bleu(i) for i in range(len(texts))) / len(texts)


def self_bleu_without(texts: Sequence[Tokens]) -> list[float]:
    """Return the self-BLEU of the others for each text left out, (N,); N at least 3."""
    overlap, n = _Overlap(texts), len(texts)
    sums = [0.0] * n
    for i in range(n):
        for k in range(n):
            if k != i:
                sums[k] += overlap.bleu(i, without=k)
    return [total / (n - 1) for total in sums]


class _Overlap:
    """N-grams of the texts of a set, and what each has in common with the others."""

    def __init__(self, texts: Sequence[Tokens]) -> None:
        self.lengths = [len(text) for text in texts]
        grams = [
            Counter(tuple(text[start : start + order])
                    for order in range(1, ORDERS + 1) for start in range(len(text) - order + 1))
            for text in texts
        ]  # fmt: skip
        holders: dict[tuple[int, ...], list[tuple[int, int]]] = {}  # who has an n-gram how often
        for i, counts in enumerate(grams):
            for gram, count in counts.items():
                holders.setdefault(gram, []).append((count, i))
        for found in holders.values():
            found.sort(reverse=True)
            del found[3:]  # with the text itself and one more left out, the first of three stays
        self.matches: list[list[int]] = []  # by order, with all the others as references
        self.lost: list[dict[int, list[int]]] = []  # of these, what goes when a text is left out
        self.nearest: list[list[tuple[int, int]]] = []  # (length, text) of the two references nearest in length
        for i, counts in enumerate(grams):
            matches = [0] * ORDERS
            lost: dict[int, list[int]] = {}
            for gram, count in counts.items():
                others = [holder for holder in holders[gram] if holder[1] != i]
                if not others:
                    continue
                best = min(count, others[0][0])
                second = min(count, others[1][0]) if len(others) > 1 else 0
                matches[len(gram) - 1] += best
                if second < best:
                    lost.setdefault(others[0][1], [0] * ORDERS)[len(gram) - 1] += best - second
            self.matches.append(matches)
            self.lost.append(lost)
            own = self.lengths[i]
            nearest = sorted((abs(length - own), length, j) for j, length in enumerate(self.lengths) if j != i)
            self.nearest.append([(length, j) for _, length, j in nearest[:2]])

    def bleu(self, i: int, without: int = -1) -> float:
        """Return the sentence BLEU of text i with all the others as references, but for the one left out."""
        lost = self.lost[i].get(without, [0] * ORDERS)
        matches = [found - gone for found, gone in zip(self.matches[i], lost, strict=True)]
        reference = next(length for length, j in self.nearest[i] if j != without)
        return _sentence_bleu(matches, self.lengths[i], reference)


def _sentence_bleu(matches: Sequence[int], length: int, reference: int) -> float:
    """Return BLEU from the n-grams in common, the text's length and that of the nearest reference."""
    if length == 0:
        return float(reference == 0)
    if not any(matches):
        return 0.0
    logarithms, smooth = [], 1.0
    for order, found in enumerate(matches[:length], 1):
        total = length - order + 1
        if found == 0:
            smooth *= 2
        logarithms.append(math.log(found / total if found else 1 / (smooth * total)))
    brevity = min(0.0, 1 - reference / length)
    return math.exp(brevity + sum(logarithms) / len(logarithms))
