"""Exact match and F1 of texts, as in the official SQuAD v1.1 script. Main entries: `exact_match()`, `f1_score()`."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Return a text in lower case without ASCII punctuation, a/an/the and extra spaces (official v1.1 script)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, references: Iterable[str]) -> float:
    """Return 1.0 if the prediction equals a reference after normalization, else 0.0.

    >>> exact_match("The Rhine.", ["rhine", "Rhine river"])
    1.0
    """
    return float(any(normalize_answer(prediction) == normalize_answer(reference) for reference in references))


def f1_score(prediction: str, references: Iterable[str]) -> float:
    """Return the highest F1 between the word multisets of the prediction and a reference, in [0, 1].

    An empty prediction scores 0, as in the official script, even if the reference normalizes to nothing.
    torchmetrics gives 1 in that case.

    >>> f1_score("the river Rhine", ["Rhine"])  # precision 1/2, recall 1
    0.6666666666666666
    """
    words = Counter(normalize_answer(prediction).split())
    best = 0.0
    for reference in references:
        expected = Counter(normalize_answer(reference).split())
        common = (words & expected).total()
        if common:
            precision, recall = common / words.total(), common / expected.total()
            best = max(best, 2 * precision * recall / (precision + recall))
    return best
