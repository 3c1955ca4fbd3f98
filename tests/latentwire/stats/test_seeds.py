"""Means over few seeds: hand-computed values, and simulations of coverage, errors and power."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats

from latentwire.stats.clusters import SampledClusters
from latentwire.stats.seeds import (
    detectable_over_seeds,
    equivalence_over_seeds,
    interval_over_clusters,
    mean_over_seeds,
    power_over_seeds,
    seeds_needed,
    two_sided_p,
)
from tests.helpers.random import numbers

SKEWED = np.array([0.1, 0.2, 0.2, 0.3, 0.4, 1.5])


def corrected(mean: float, values: np.ndarray) -> float:
    """Hall's statistic with half of the skewness, written down again from the paper."""
    n, w = len(values), (values.mean() - mean) / values.std(ddof=1)
    g = 0.5 * stats.skew(values)
    return np.sqrt(n) * (w + g * w**2 / 3 + g**2 * w**3 / 27 + g / (6 * n))


def test_symmetric_values_have_students_interval_and_p():
    values = np.array([[-0.1, 0.1, 0.3, 0.5, 0.7], [1.0, 2.0, 3.0, 4.0, 5.0]])
    for row, found in zip(values, mean_over_seeds(values), strict=True):
        expected = stats.ttest_1samp(row, 0.0)
        assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
        assert found.p_value == pytest.approx(expected.pvalue)


def test_the_interval_of_skewed_values_inverts_halls_statistic():
    (found,) = mean_over_seeds(SKEWED[None])
    t = stats.t.ppf(0.975, len(SKEWED) - 1)
    low = optimize.brentq(lambda mean: corrected(mean, SKEWED) - t, -5, 5)
    high = optimize.brentq(lambda mean: corrected(mean, SKEWED) + t, -5, 5)
    assert found.interval == pytest.approx((low, high))
    assert high - SKEWED.mean() > SKEWED.mean() - low  # longer on the side of the long tail
    (mirrored,) = mean_over_seeds(-SKEWED[None])
    assert mirrored.interval == pytest.approx((-high, -low)) and mirrored.p_value == pytest.approx(found.p_value)


@pytest.mark.parametrize("values", [SKEWED, -SKEWED, SKEWED - 0.9])
def test_a_p_value_is_the_larger_one_with_and_without_correction(values):
    t = stats.t(len(values) - 1)
    hall = 2 * t.sf(abs(corrected(0, values)))
    student = stats.ttest_1samp(values, 0).pvalue
    assert two_sided_p(values) == pytest.approx(max(hall, student), rel=1e-6)


def test_equal_values_have_no_width_and_p_of_1():
    values = np.array([[0.3] * 4, [0.1 + 0.2, 0.3, 0.3, 0.3]])  # the second row differs by rounding alone
    for found in mean_over_seeds(values):
        assert found.interval == pytest.approx((0.3, 0.3)) and found.p_value == 1
    assert [one.p_value for one in equivalence_over_seeds(values, [1.0, 1.0])] == [1, 1]


def test_single_examples_have_the_interval_over_seeds():
    (found,) = mean_over_seeds(SKEWED[None])
    assert interval_over_clusters(SKEWED, SampledClusters.single(6)) == pytest.approx(found.interval)
    repeated, labels = SKEWED.repeat(4), np.arange(6).repeat(4).tolist()
    assert interval_over_clusters(repeated, SampledClusters(labels)) == pytest.approx(found.interval)


def test_clusters_weigh_by_their_examples():
    """Without skewness the half width is Student's quantile times the standard error of the ratio."""
    values, clusters = np.array([0.0, 0.0, 2.0, 2.0, 4.0, 4.0, 1.0, 3.0]), SampledClusters([0, 0, 1, 1, 2, 2, 3, 3])
    error = (4 / 3 * (16 + 0 + 16 + 0)) ** 0.5 / 8
    half = stats.t.ppf(0.975, 3) * error
    assert interval_over_clusters(values, clusters) == pytest.approx((2 - half, 2 + half))
    assert interval_over_clusters(values, clusters, 0.0) == pytest.approx((0, 2 + half))
    assert interval_over_clusters(np.array([1.0, 1.0, 1.0, 9.0]), SampledClusters([0, 0, 0, 1]))[1] > 9  # two clusters


def test_one_cluster_and_equal_values_have_no_width():
    assert interval_over_clusters(np.array([1.0, 3.0]), SampledClusters(["a", "a"])) == (2, 2)
    assert interval_over_clusters(np.full(5, 2.5), SampledClusters([0, 1, 1, 2, 3])) == (2.5, 2.5)


@pytest.mark.statistical
@pytest.mark.parametrize("each", [1, 3])
def test_intervals_over_clusters_cover_skewed_means(each):
    """Losses of 20 passages with a common half of their variance; a bootstrap of the examples covers .90 and .76."""
    generator, covered = numbers(0), 0
    clusters = SampledClusters(np.arange(20).repeat(each).tolist())
    for _ in range(1000):
        values = generator.gamma(0.5, size=20).repeat(each) + generator.gamma(0.5, size=20 * each)  # mean 1
        low, high = interval_over_clusters(values, clusters, 0.0)
        covered += low <= 1 <= high
    assert 0.9 < covered / 1000 < 0.97


def test_equivalence_is_two_one_sided_tests():
    values = np.array([-0.1, 0.1, 0.3, 0.5, 0.7])
    (found,) = equivalence_over_seeds(values[None], [0.9])
    below = stats.ttest_1samp(values, 0.9, alternative="less").pvalue
    above = stats.ttest_1samp(values, -0.9, alternative="greater").pvalue
    assert found.p_value == pytest.approx(max(below, above))
    assert found.interval == pytest.approx(tuple(stats.ttest_1samp(values, 0).confidence_interval(0.9)))


EFFECTS = {
    "normal": lambda generator, shape: generator.standard_normal(shape),
    "skewed": lambda generator, shape: (generator.gamma(4, size=shape) - 4) / 2,  # skewness 1
    "skewed down": lambda generator, shape: -(generator.gamma(4, size=shape) - 4) / 2,
}


@pytest.mark.statistical
@pytest.mark.parametrize("seeds", [5, 10, 20])
@pytest.mark.parametrize("effect", EFFECTS)
@pytest.mark.parametrize("noise", [0.1, 3.0], ids=["small noise", "large noise"])
def test_intervals_cover_93_to_97_percent(seeds, effect, noise):
    """The difference of a seed is an effect with a spread of 1 and the noise of its prompts."""
    generator, shape = numbers(seeds), (20_000, seeds)
    values = 0.4 + EFFECTS[effect](generator, shape) + noise * generator.standard_normal(shape)
    covered = [found.interval[0] <= 0.4 <= found.interval[1] for found in mean_over_seeds(values)]
    assert 0.93 <= np.mean(covered) <= 0.97


@pytest.mark.statistical
@pytest.mark.parametrize("seeds", [5, 10, 20])
@pytest.mark.parametrize("effect", EFFECTS)
def test_equivalence_errs_rarely_at_the_margin(seeds, effect):
    """A true difference equal to the margin is equivalent in 5% of experiments; in 9% with a skewness of 1."""
    values = 1.5 + EFFECTS[effect](numbers(seeds), (10_000, seeds)) / 2
    wrong = [one.p_value < 0.05 for one in equivalence_over_seeds(values, np.full(len(values), 1.5))]
    assert 0.01 < np.mean(wrong) < (0.055 if effect == "normal" else 0.1)
    right = equivalence_over_seeds(values[:2000] - 1.5, np.full(2000, 1.5))
    assert np.mean([one.p_value < 0.05 for one in right]) > 0.9


@pytest.mark.statistical
@pytest.mark.parametrize("seeds", [5, 10, 20])
@pytest.mark.parametrize("side", [0, 1, -1], ids=["normal", "skewed", "skewed down"])
def test_power_is_as_predicted_within_a_tenth(seeds, side):
    """An estimate of the spread predicts what 80% of further experiments detect, also with a skewness of 2/3."""
    generator = numbers(seeds)

    def effects(count: int) -> np.ndarray:
        skewed = side * (generator.gamma(9, size=(count, seeds)) - 9) / 3
        return skewed if side else generator.standard_normal((count, seeds))

    sds, values = effects(400).std(axis=1, ddof=1), effects(1000)
    detected = [np.mean(two_sided_p(values + detectable_over_seeds(sd, seeds, 0.05)) < 0.05) for sd in sds]
    assert np.mean(detected) == pytest.approx(0.8, abs=0.1)


def test_more_seeds_detect_smaller_differences():
    assert detectable_over_seeds(1, 20, 0.05) < detectable_over_seeds(1, 10, 0.05) < detectable_over_seeds(1, 5, 0.05)
    assert detectable_over_seeds(2, 10, 0.05) == pytest.approx(2 * detectable_over_seeds(1, 10, 0.05))
    needed = seeds_needed(0.5, 1, 10, 0.05, 1000)
    assert needed is not None
    assert power_over_seeds(0.5, 1, 10, 0.05, needed) >= 0.8 > power_over_seeds(0.5, 1, 10, 0.05, needed - 1)
    assert seeds_needed(0.5, 1, 10, 0.05, needed - 1) is None


def test_many_seeds_need_what_the_normal_formula_says():
    """With a known spread, a difference of .2 sd takes (1.96 + .84)^2 / .2^2 = 196 seeds."""
    assert seeds_needed(0.2, 1, 2000, 0.05, 1000) == pytest.approx(198, abs=6)
