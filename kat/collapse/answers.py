"""Answers among the completions of a prompt: distinct-k and utility-k. Main entries: `distinct()`, `utility()`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from kat.world.truth import entropy_estimate

K = 10  # generations of distinct-k and utility-k
PATIENCE = 0.8  # probability that a user reads on after an answer
SIMULATED = 400  # sets of completions of a simulated bias


def plain(text: str) -> str:
    """Return a text with single spaces and without spaces at its ends."""
    return " ".join(text.split())


def distinct(classes: Sequence[Hashable], good: Sequence[bool] | None = None) -> int:
    """Return the number of classes, with `good` the number of classes of good completions."""
    return len(set(classes) if good is None else {one for one, fine in zip(classes, good, strict=True) if fine})


def utility(classes: Sequence[Hashable], values: Sequence[float]) -> float:
    """Return the utility of the generations to a user who reads them in order, between the lowest and highest value.

    A generation counts only if its class is new. The weights are PATIENCE^i, normalised to sum 1.

    Source: NoveltyBench (Zhang et al. 2025, arXiv 2504.05228), utility_k.

    Args:
        classes: Class of each generation, in order.
        values: Quality of each generation.

    >>> utility([0, 0, 1], [1, 1, 1])  # (1 + .64) / (1 + .8 + .64)
    0.6721311475409836
    """
    seen: set[Hashable] = set()
    total = weights = 0.0
    for number, (one, value) in enumerate(zip(classes, values, strict=True)):
        weights += PATIENCE**number
        if one not in seen:
            total += PATIENCE**number * value
        seen.add(one)
    return total / weights


def estimate_bias(answers: int, draws: int) -> float:
    """Return the bias of `kat.world.truth.entropy_estimate` in nats for answers with even probabilities.

    Even answers are the hardest case: uneven ones have fewer that are never seen. The bias is simulated with random
    numbers of its own.

    Args:
        answers: Number of valid answers.
        draws: Number of valid completions, at least 2.
    """
    drawn = np.random.default_rng(0).integers(answers, size=(SIMULATED, draws))
    estimates = [entropy_estimate(list(Counter(row).values())) for row in drawn.tolist()]
    return float(np.mean([value for value in estimates if value is not None])) - math.log(answers)
