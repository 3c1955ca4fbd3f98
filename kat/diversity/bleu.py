"""Self-BLEU of a set of token sequences, and of the set without each one. Main entry: `self_bleu()`.

The tests compare it with sacrebleu. The leave-one-out values need M^2 sentence scores for M texts. sacrebleu processes
all references for each score, which takes M^3 steps, so the n-gram overlap is computed once here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

ORDERS = 4  # BLEU-4
Tokens = Sequence[int]


def self_bleu(texts: Sequence[Tokens]) -> float:
    """Return the mean BLEU of each text with all others as references, in [0, 1]; copies have 1.

    Source: Zhu et al. 2018 (Texygen), over token ids. Sentence BLEU is that in sacrebleu, with exponential smoothing
    and effective order, so texts below four tokens count. An empty text has BLEU 1 if another text is empty, else 0.

    Args:
        texts: At least two token sequences.

    >>> self_bleu([[1, 2, 3, 4, 5]] * 3), self_bleu([[1, 2, 3, 4], [5, 6, 7, 8]]) < 0.2
    (1.0, True)
    """
    overlap = _Overlap(texts)
    return sum(overlap.bleu(i) for i in range(len(texts))) / len(texts)


def self_bleu_without(texts: Sequence[Tokens]) -> list[float]:
    """Return the self-BLEU of the set without each text in turn, N values for N texts, N at least 3."""
    overlap, n = _Overlap(texts), len(texts)
    sums = [0.0] * n
    for i in range(n):
        for k in range(n):
            if k != i:
                sums[k] += overlap.bleu(i, without=k)
    return [total / (n - 1) for total in sums]


class _Overlap:
    """The n-grams that each text of a set shares with the others."""

    def __init__(self, texts: Sequence[Tokens]) -> None:
        self.lengths = [len(text) for text in texts]
        grams = [
            Counter(tuple(text[start : start + order])
                    for order in range(1, ORDERS + 1) for start in range(len(text) - order + 1))
            for text in texts
        ]  # fmt: skip
        holders: dict[tuple[int, ...], list[tuple[int, int]]] = {}  # n-gram -> (count, text) of each text with it
        for i, counts in enumerate(grams):
            for gram, count in counts.items():
                holders.setdefault(gram, []).append((count, i))
        for texts_with_gram in holders.values():
            texts_with_gram.sort(reverse=True)
            del texts_with_gram[3:]  # three suffice: the text itself and one more text may be excluded
        self.matches: list[list[int]] = []  # matches of each text by order, with all others as references
        self.lost: list[dict[int, list[int]]] = []  # matches that each text loses if another text is left out
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
        """Return the sentence BLEU of text i with all others as references, except the text `without`."""
        lost = self.lost[i].get(without, [0] * ORDERS)
        matches = [count - loss for count, loss in zip(self.matches[i], lost, strict=True)]
        reference = next(length for length, j in self.nearest[i] if j != without)
        return _sentence_bleu(matches, self.lengths[i], reference)


def _sentence_bleu(matches: Sequence[int], length: int, reference: int) -> float:
    """Return BLEU from the matches by order, the length of the text and the length of the nearest reference."""
    if length == 0:
        return float(reference == 0)
    if not any(matches):
        return 0.0
    log_precisions, smooth = [], 1.0
    for order, count in enumerate(matches[:length], 1):
        total = length - order + 1
        if count == 0:
            smooth *= 2
        log_precisions.append(math.log(count / total if count else 1 / (smooth * total)))
    brevity = min(0.0, 1 - reference / length)
    return math.exp(brevity + sum(log_precisions) / len(log_precisions))
