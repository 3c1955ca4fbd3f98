"""Exact match and F1 of texts, as in the official SQuAD v1.1 script, and classes of texts by F1.

Main entries: `exact_match()`, `f1_score()`, `classes_of()`.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@lru_cache(maxsize=2**16)
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
    words = _word_counts(prediction)
    best = 0.0
    for reference in references:
        expected = _word_counts(reference)
        common = 0 if words.keys().isdisjoint(expected) else (words & expected).total()
        if common:
            precision, recall = common / words.total(), common / expected.total()
            best = max(best, 2 * precision * recall / (precision + recall))
    return best


@lru_cache(maxsize=2**16)
def _word_counts(text: str) -> Counter[str]:
    return Counter(normalize_answer(text).split())


def classes_of(texts: Sequence[str], same_from: float) -> list[int]:
    """Return the class of each text, numbered from 0 in order of appearance.

    A text joins the first class whose first text it resembles: both are equal after normalisation (case, punctuation,
    articles, spaces), or their word F1 is at least `same_from`. NoveltyBench decides this with a trained classifier.

    Args:
        texts: Completions of a prompt.
        same_from: Smallest word F1 of texts in a class; above 1: only equal texts.

    >>> classes_of(["The Rhine", "rhine.", "Rhine river", "Elbe"], 0.6)
    [0, 0, 0, 1]
    """
    firsts: list[str] = []
    known: dict[str, int] = {}
    found = []
    for text in texts:
        key = normalize_answer(text)
        if key not in known:
            similar = (n for n, first in enumerate(firsts) if same_from <= 1 and f1_score(key, [first]) >= same_from)
            known[key] = next(similar, len(firsts))
            if known[key] == len(firsts):
                firsts.append(key)
        found.append(known[key])
    return found
