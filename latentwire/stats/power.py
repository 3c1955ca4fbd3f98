"""Power of paired comparisons. Main entries: `detectable_difference()`, `samples_needed()`."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from latentwire.stats.intervals import Scores

POWER = 0.8  # probability of detecting a true difference
ALPHA = 0.05  # probability of a false positive
POWER_FORMULA = (
    "(z(1 - alpha/2) + z(power)) sd(paired differences) / sqrt(n): normal approximation of the paired t-test"
)


def std(differences: Scores) -> float:
    """Return the standard deviation of paired differences, (N,); 0 for fewer than two."""
    return float(np.std(differences, ddof=1)) if len(differences) > 1 else 0.0


def detectable_difference(sd: float, count: int, alpha: float) -> float:
    """Return the smallest difference that `count` paired examples detect with probability POWER: POWER_FORMULA.

    Args:
        sd: Standard deviation of the paired differences.
        count: Number of examples.
        alpha: Two-sided significance level of one comparison. For a family, divide it by the number of comparisons:
            Bonferroni's level, which Holm applies to the smallest p-value.
    """
    normal = NormalDist()
    return (normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(POWER)) * sd / math.sqrt(count)


def samples_needed(sd: float, difference: float, alpha: float) -> int:
    """Return the number of paired examples that detect a difference with probability POWER.

    Args:
        sd: Standard deviation of the paired differences.
        difference: Difference to detect, above 0.
        alpha: Two-sided significance level of one comparison.

    Returns:
        POWER_FORMULA solved for n, rounded up.
    """
    return max(1, math.ceil((detectable_difference(sd, 1, alpha) / difference) ** 2 - 1e-9))
