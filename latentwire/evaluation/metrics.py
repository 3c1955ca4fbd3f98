"""Exact match and F1 as the official SQuAD v1.1 script scores them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable

_ARTICLES = re.compile(r"\b(a|an|the)\b")


_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower-case, strip ASCII punctuation, drop a/an/the, collapse spaces (the official v1.1 script)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, references: Iterable[str]) -> float:
    """Return 1.0 if the normalized prediction equals one of the normalized references, else 0.0."""
    return float(any(normalize_answer(prediction) == normalize_answer(reference) for reference in references))


def f1_score(prediction: str, references: Iterable[str]) -> float:
    """Return the best F1 of word multisets over the references, in [0, 1].

    As in the official script an empty prediction scores 0, also against a reference that normalizes to nothing
    (torchmetrics gives 1 there).
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
