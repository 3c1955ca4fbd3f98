"""Power of paired comparisons. Main entries: `detectable_difference()`, `samples_needed()`."""

from __future__ import annotations

import math
from statistics import NormalDist

from scipy.special import gammaincinv

POWER = 0.8  # probability of detecting a true difference
ALPHA = 0.05  # probability of a false positive
POWER_FORMULA = (
    "(z(1 - alpha/2) + z(power)) sd(paired differences) / sqrt(n): normal approximation of the paired t-test"
)


def needed_changes(alpha: float) -> int:
    """Return how many changed examples a test by sign flips needs for a p-value of alpha: 2^(1 - K) <= alpha."""
    return 1 + math.ceil(math.log2(1 / alpha) - 1e-9)


def expected_changes(alpha: float) -> float:
    """Return how many changes must be expected for `needed_changes` of them with probability POWER.

    Their number is Poisson's: of 6 expected changes at least 6 come in 55% of samples, of 7.9 in 80%.
    """
    return float(gammaincinv(needed_changes(alpha), POWER))


def detectable_difference(sd: float, count: int, alpha: float, change: float = 0.0) -> float:
    """Return the smallest difference that `count` paired examples detect with probability POWER: POWER_FORMULA.

    It is at least the difference of `expected_changes` examples of the size `change`, because fewer show nothing.

    Args:
        sd: Standard deviation of the paired differences.
        count: Number of examples.
        alpha: Two-sided significance level of one comparison. For a family, divide it by the number of comparisons:
            Bonferroni's level, which Holm applies to the smallest p-value.
        change: Mean size of the differences that are not 0.
    """
    normal = NormalDist()
    by_spread = (normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(POWER)) * sd / math.sqrt(count)
    return max(by_spread, expected_changes(alpha) * change / count)


def samples_needed(sd: float, difference: float, alpha: float, change: float = 0.0) -> int:
    """Return the number of paired examples that detect a difference with probability POWER.

    Args:
        sd: Standard deviation of the paired differences.
        difference: Difference to detect, above 0.
        alpha: Two-sided significance level of one comparison.
        change: Mean size of the differences that are not 0.

    Returns:
        `detectable_difference` solved for n, rounded up.
    """
    by_spread = (detectable_difference(sd, 1, alpha) / difference) ** 2
    return max(1, math.ceil(max(by_spread, expected_changes(alpha) * change / difference) - 1e-9))
