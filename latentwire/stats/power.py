"""What a paired comparison can detect, and how many examples a difference needs."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from latentwire.stats.intervals import Scores

POWER = 0.8  # the chance to see a difference that is there


ALPHA = 0.05  # the chance to see one that is not


POWER_FORMULA = (
    "(z(1 - alpha/2) + z(power)) sd(paired differences) / sqrt(n): normal approximation of the paired t-test"
)


def std(differences: Scores) -> float:
    """Return the standard deviation of paired differences, (N,); 0 where there are fewer than two."""
    return float(np.std(differences, ddof=1)) if len(differences) > 1 else 0.0


def detectable_difference(sd: float, count: int, alpha: float) -> float:
    """Return the smallest difference that `count` paired examples show with a chance of POWER (POWER_FORMULA).

    Args:
        sd: Standard deviation of the paired differences.
        count: Number of examples.
        alpha: Two-sided, of one comparison; divide it by the number of comparisons for the corrected figure, which
            is Bonferroni's and what Holm asks of the smallest p-value.
    """
    normal = NormalDist()
    return (normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(POWER)) * sd / math.sqrt(count)


def samples_needed(sd: float, difference: float, alpha: float) -> int:
    """Return how many paired examples show a difference with a chance of POWER: POWER_FORMULA solved for n."""
    return max(1, math.ceil((detectable_difference(sd, 1, alpha) / difference) ** 2 - 1e-9))
