"""Intervals of means against theory: Wilson's, with an effective number of examples, and Student's quantile."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from scipy.stats import t as student

from latentwire.stats.clusters import SampledClusters
from latentwire.stats.intervals import exact_interval, mean_interval, t_quantile, wilson_interval
from tests.helpers.random import numbers


@pytest.mark.parametrize(("successes", "count"), [(1, 2), (1, 30), (15, 40), (39, 40), (500, 1000), (0.5, 3)])
def test_the_ends_of_wilsons_interval_are_just_not_rejected(successes, count):
    """At both ends the score test of that proportion is exactly at its limit, as Wilson defined it."""
    rate = successes / count
    low, high = wilson_interval(successes, count)
    assert low < rate < high
    for end in (low, high):
        assert abs(rate - end) / math.sqrt(end * (1 - end) / count) == pytest.approx(1.959964, abs=1e-5)


def test_wilsons_interval_by_hand_where_nothing_varies():
    z2 = 1.959964**2
    assert wilson_interval(0, 10) == pytest.approx((0, z2 / (10 + z2)), abs=1e-6)
    assert wilson_interval(10, 10) == pytest.approx((10 / (10 + z2), 1), abs=1e-6)
    for count in range(1, 300):
        assert wilson_interval(0, count)[0] >= 0
        assert wilson_interval(count, count)[1] <= 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 2 / 3, 1.0]), min_size=1, max_size=30))
def test_an_interval_contains_the_mean_and_stays_between_0_and_1(scores):
    low, high = mean_interval(scores)
    assert 0 <= low <= np.mean(scores) + 1e-12
    assert np.mean(scores) - 1e-12 <= high <= 1
    assert low < high


@pytest.mark.parametrize(("score", "count"), [(0.0, 8), (0.0, 100), (1.0, 7), (1.0, 100), (0.5, 40)])
def test_equal_scores_get_the_interval_of_a_proportion(score, count):
    """With Student's quantile, because the variance is not known."""
    expected = wilson_interval(score * count, count, float(student.ppf(0.975, count - 1)))
    assert mean_interval([score] * count) == pytest.approx(expected)


@pytest.mark.parametrize("ones", [1, 3, 25, 49])
def test_binary_scores_have_wilsons_interval_with_one_less(ones):
    """The variance of N binary scores is m (1 - m) / (N - 1). Near 0 and 1 the exact interval may be wider."""
    scores = np.array([1.0] * ones + [0.0] * (50 - ones))
    expected = wilson_interval(ones / 50 * 49, 49, float(student.ppf(0.975, 49)))
    if ones != 25:
        exact = exact_interval(ones / 50 * 49, 49)
        expected = min(expected[0], exact[0]), max(expected[1], exact[1])
    assert mean_interval(scores) == pytest.approx(expected)
    low, high = mean_interval(1 - scores)
    assert (1 - high, 1 - low) == pytest.approx(expected)


def test_the_exact_interval_is_clopper_and_pearsons():
    for successes, count in ((0, 20), (3, 100), (20, 20)):
        expected = binomtest(successes, count).proportion_ci(method="exact")
        assert exact_interval(successes, count) == pytest.approx((expected.low, expected.high))


@pytest.mark.statistical
@pytest.mark.parametrize("count", [50, 100])
def test_a_mean_near_0_is_covered(count):
    """Wilson's interval alone covers .90 to .92 here."""
    scores = (numbers(0).random((600, count)) < 0.01).astype(float)
    held = [low <= 0.01 <= high for low, high in map(mean_interval, scores)]
    assert np.mean(held) >= 0.95


def test_large_samples_have_the_normal_interval():
    scores = np.tile([0.0, 0.2, 0.5, 1.0, 1.0], 200)
    half = 1.96 * scores.std() / math.sqrt(1000)
    assert mean_interval(scores) == pytest.approx((scores.mean() - half, scores.mean() + half), abs=0.03 * half)


def test_scores_that_vary_little_have_a_narrow_interval():
    """Scores between .4 and .6 vary less than binary ones."""
    scores = np.linspace(0.4, 0.6, 101)
    half = student.ppf(0.975, 100) * scores.std(ddof=1) / math.sqrt(101)
    low, high = mean_interval(scores)
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.02 * half)
    binary = wilson_interval(50.5, 101)
    assert high - low < 0.2 * (binary[1] - binary[0])


def test_too_few_scores_apart_from_0_do_not_show_their_variance():
    """With fewer than ten such scores, the interval is at least as wide as for binary ones."""
    for apart, narrow in ((9, False), (10, True)):
        scores = np.concatenate([np.full(apart, 0.5), np.zeros(90)])
        binary = wilson_interval(scores.sum(), len(scores), float(student.ppf(0.975, len(scores) - 1)))
        assert (mean_interval(scores)[1] < binary[1] - 1e-9) == narrow, apart
        low, high = mean_interval(1 - scores)
        assert (1 - high, 1 - low) == pytest.approx(mean_interval(scores))
    tiny = np.full(100, 0.01) + np.linspace(-0.002, 0.002, 100)  # a mean of less than 2 / N
    by_wilson = wilson_interval(tiny.sum(), 100, float(student.ppf(0.975, 99)))
    low, high = mean_interval(tiny)
    assert low <= by_wilson[0] < by_wilson[1] <= high


def test_members_of_a_cluster_count_once_if_they_are_equal():
    scores = np.array([1.0] * 12 + [0.0] * 28)
    fourfold = SampledClusters(np.repeat(np.arange(40), 4).tolist())
    assert mean_interval(np.repeat(scores, 4), fourfold) == pytest.approx(mean_interval(scores))
    low, high = mean_interval(np.repeat(scores, 4))
    assert high - low < 0.6 * np.ptp(mean_interval(scores))


def test_one_cluster_is_one_example():
    assert mean_interval([1.0, 0.0, 1.0, 0.0], SampledClusters(["p"] * 4)) == wilson_interval(0.5, 1)
    assert mean_interval([1.0]) == wilson_interval(1.0, 1)


@pytest.mark.statistical
def test_a_cluster_with_most_examples_is_no_evidence():
    """Of 81 clusters one has half of the examples. The examples of a cluster are right together."""
    labels = np.array([0] * 80 + list(range(1, 81)))
    clusters = SampledClusters(labels.tolist())
    drawn = (numbers(0).random((200, 81)) < 0.6).astype(float)[:, labels]
    held = [low <= 0.6 <= high for low, high in (mean_interval(scores, clusters) for scores in drawn)]
    assert np.mean(held) >= 0.92


@pytest.mark.statistical
@pytest.mark.parametrize(("mean", "count"), [(0.02, 100), (0.3, 8), (0.5, 30), (0.97, 100)])
def test_intervals_cover_the_mean_as_often_as_stated(mean, count):
    """Of 1,000 intervals at least 921 cover it: 93% less four standard errors of 95%, and a little for steps."""
    drawn = (numbers(0).random((1000, count)) < mean).astype(float)
    held = [low <= mean <= high for low, high in map(mean_interval, drawn)]
    assert np.mean(held) >= 0.92


@pytest.mark.parametrize("degrees", [1, 2, 5, 30, 199])
def test_students_quantile_is_that_of_scipy(degrees):
    assert t_quantile(0.95, degrees) == pytest.approx(student.ppf(0.975, degrees), rel=1e-9)
