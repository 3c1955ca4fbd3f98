"""Detectable differences and needed numbers of examples: by hand, and against the test whose power they predict."""

import math

import numpy as np
import pytest

from latentwire.stats.comparison import paired_differences
from latentwire.stats.power import detectable_difference, expected_changes, needed_changes, samples_needed
from tests.helpers.random import numbers


def test_the_detectable_difference_by_hand():
    # z(.975) = 1.959964, z(.8) = .841621
    assert detectable_difference(0.5, 100, 0.05) == pytest.approx((1.959964 + 0.841621) * 0.05, abs=1e-6)
    assert detectable_difference(0.5, 100, 0.05 / 10) == pytest.approx((2.807034 + 0.841621) * 0.05, abs=1e-6)
    assert samples_needed(0.5, 0.05, 0.05) == 785  # 784.9
    assert samples_needed(0.5, 0.1, 0.05) == 197  # 196.2
    assert samples_needed(0.0, 0.1, 0.05) == 1


@pytest.mark.parametrize(("alpha", "changes"), [(0.05, 6), (0.0625, 5), (0.05 / 27, 11), (0.5, 2), (1.0, 1)])
def test_the_changes_that_a_test_needs(alpha, changes):
    """All changes of one direction have the p-value 2^(1 - K)."""
    assert needed_changes(alpha) == changes
    assert 2.0 ** (1 - changes) <= alpha < 2.0 ** (2 - changes)


def test_fewer_changes_than_a_test_needs_are_not_detectable():
    """One changed answer of 100 has a small standard deviation, but no test can show it."""
    sd = 0.1
    assert detectable_difference(sd, 100, 0.05) == pytest.approx(0.028, abs=1e-3)
    assert detectable_difference(sd, 100, 0.05, 1.0) == pytest.approx(0.0791, abs=1e-4)  # 7.91 expected answers
    assert detectable_difference(sd, 100, 0.05, 0.2) == pytest.approx(0.028, abs=1e-3)  # 8 small changes are less
    assert detectable_difference(sd, 100, 0.05 / 27, 1.0) == pytest.approx(0.1365, abs=1e-4)
    assert samples_needed(sd, 0.05, 0.05, 1.0) == 159  # 7.91 / .05
    assert samples_needed(sd, 0.05, 0.05) == 32


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 27])
def test_the_expected_changes_come_four_times_in_five(alpha):
    expected, needed = expected_changes(alpha), needed_changes(alpha)
    fewer = sum(math.exp(-expected) * expected**k / math.factorial(k) for k in range(needed))
    assert fewer == pytest.approx(0.2)


def test_the_needed_changes_are_what_a_comparison_needs():
    for alpha in (0.05, 0.05 / 4):
        p_values = [
            paired_differences(np.array([[1.0] * changed + [0.0] * 40]), np.zeros(changed + 40), 0, None, 1.0, 1)[
                0
            ].p_value
            for changed in (needed_changes(alpha) - 1, needed_changes(alpha))
        ]
        assert p_values[0] > alpha >= p_values[1]


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("count", [30, 250])
def test_the_detectable_difference_is_seen_four_times_in_five(count):
    generator = numbers(0)
    difference = detectable_difference(0.4, count, 0.05)
    drawn = generator.normal(difference, 0.4, size=(2000, count))
    seen = [one.p_value < 0.05 for one in paired_differences(drawn, np.zeros(count), 0, comparisons=1)]
    assert np.mean(seen) == pytest.approx(0.79, abs=0.045)  # the unseen changes take a little power


def test_the_samples_needed_detect_the_difference():
    for target in (0.03, 0.1):
        for change in (0.0, 0.9):
            count = samples_needed(0.2, target, 0.01, change)
            assert detectable_difference(0.2, count, 0.01, change) <= target + 1e-12
            assert detectable_difference(0.2, count - 1, 0.01, change) > target
