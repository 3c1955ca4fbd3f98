"""Scores of systems that were chosen among many: without bias, by clusters, and level with the best."""

import numpy as np
import pytest
from scipy.stats import t as student

from latentwire.stats.clusters import SampledClusters
from latentwire.stats.intervals import mean_interval
from latentwire.stats.selection import cross_fit, level_with_best
from tests.helpers.random import numbers


def family_of(generator, systems, count, shared=0.5):
    """Return scores of systems with equal true means of .5; they share a part of their answers."""
    base, own = generator.integers(0, 2, (1, count)), generator.integers(0, 2, (systems, count))
    return np.where(generator.random((systems, count)) < shared, base, own).astype(float)


@pytest.mark.statistical
def test_the_best_of_equal_systems_is_not_too_high():
    """The mean of all systems is an unbiased reference with the same examples."""
    generator = numbers(0)
    raw, fitted = [], []
    for seed in range(50):
        systems = family_of(generator, 20, 100)
        found = cross_fit(systems, SampledClusters.single(100), seed)
        raw.append(systems.mean(axis=1).max() - systems.mean())
        fitted.append(found.mean - systems.mean())
    assert np.mean(raw) > 0.05
    assert abs(np.mean(fitted)) < 0.02
    assert np.std(fitted) / np.sqrt(50) < 0.007  # .0045 is expected, and .02 is four of it


@pytest.mark.statistical
def test_the_interval_of_a_choice_covers_its_score():
    generator = numbers(0)
    held = []
    for seed in range(60):
        low, high = cross_fit(family_of(generator, 5, 100), SampledClusters.single(100), seed).interval
        held.append(low <= 0.5 <= high)
    assert np.mean(held) >= 0.84  # 95% and four standard errors


def test_a_clear_choice_has_the_interval_of_its_mean():
    """It is always chosen, so its score is the mean of all examples, with the variance of its clusters."""
    generator = numbers(0)
    labels = np.repeat(np.arange(20), 3).tolist()
    best = 0.5 + 0.5 * generator.random(60)
    systems = np.stack([best - 0.5, best, best - 0.4])
    clusters = SampledClusters(labels)
    found = cross_fit(systems, clusters, 0)
    assert found.mean == pytest.approx(best.mean())
    assert found.interval == pytest.approx(mean_interval(best, clusters))
    gain = cross_fit(systems, clusters, 0, systems - 0.1)  # all changed: two changes of sqrt(2 / 62) are added
    together = np.square(clusters.sums(best[None] - 0.1)).sum() / np.square(best - 0.1).sum()
    variance = clusters.variances(best[None])[0] + 2 * (2 / 62 * together) / 60**2
    half = student.ppf(0.975, 19) * variance**0.5
    assert gain.interval == pytest.approx((best.mean() - 0.1 - half, best.mean() - 0.1 + half))
    assert found.chosen.tolist() == [0.0, 1.0, 0.0]


def test_scores_without_spread_have_an_interval():
    """Twenty right answers do not prove 1, also where the twenty were chosen among copies."""
    systems, clusters = np.ones((3, 20)), SampledClusters.single(20)
    assert cross_fit(systems, clusters, 0).interval == pytest.approx(mean_interval(systems[0]))
    low, high = cross_fit(systems, clusters, 0, systems - 1).interval
    assert low == -high < -0.13  # the exact two-sided bound of a share that 20 examples do not show is .168
    share = cross_fit(systems, clusters, 0, systems - 0.9, np.full(20, 0.1)).interval
    assert share[0] < 0 < share[1]  # a true share of .9 shows 20 of 20 in 12% of cases


def test_equal_systems_share_the_choice():
    scores = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    systems = np.stack([scores, scores, np.zeros(8)])
    found = cross_fit(systems, SampledClusters.single(8), 0)
    assert found.chosen == pytest.approx([0.5, 0.5, 0.0])
    assert found.mean == pytest.approx(scores.mean())
    first = cross_fit(systems[1:], SampledClusters.single(8), 0, systems[1:] + np.array([[0.0], [9.0]]))
    both = cross_fit(systems, SampledClusters.single(8), 0, systems + np.array([[1.0], [0.0], [9.0]]))
    assert first.mean == pytest.approx(scores.mean())
    assert both.mean == pytest.approx(scores.mean() + 0.5)  # the mean of both, where they are level


def test_a_choice_and_its_score_share_no_cluster():
    """Each system answers the questions about one passage only: on other passages, its score is 0."""
    labels = np.repeat(np.arange(8), 10)
    systems = (labels == np.arange(8)[:, None]).astype(float)
    assert cross_fit(systems, SampledClusters(labels.tolist()), 0).mean == 0.0
    assert cross_fit(systems, SampledClusters.single(80), 0).mean > 0.02


def test_other_values_of_the_chosen_system_are_averaged():
    systems = family_of(numbers(0), 4, 40)
    clusters = SampledClusters.single(40)
    own, below = cross_fit(systems, clusters, 0), cross_fit(systems, clusters, 0, systems - 0.25)
    assert below.mean == pytest.approx(own.mean - 0.25)
    assert below.chosen.tolist() == own.chosen.tolist()
    assert own.chosen.sum() == pytest.approx(1)
    assert cross_fit(systems, clusters, 0).mean == own.mean != cross_fit(systems, clusters, 1).mean


@pytest.mark.parametrize("count", [3, 4])
def test_fewer_than_four_clusters_cannot_choose(count):
    labels = [number % count for number in range(20)]
    found = cross_fit(family_of(numbers(0), 3, 20), SampledClusters(labels), 0)
    assert (found is None) == (count < 4)


# --- level with the best ----------------------------------------------------------------------------------------


@pytest.mark.statistical
def test_equal_best_systems_are_rarely_called_not_level():
    """Of 200 families 10 are expected, and 22 are four standard deviations more; the selected best would give 24."""
    generator = numbers(0)
    called = 0
    for seed in range(200):
        systems = family_of(generator, 6, 100, 0.3)
        systems[5] *= 0.5  # clearly worse
        called += not level_with_best(systems, SampledClusters.single(100), seed)[:5].all()
    assert called <= 22


def test_a_clearly_worse_system_is_not_level():
    generator = numbers(0)
    best = (generator.random(100) < 0.8).astype(float)
    close = np.where(np.arange(100) < 3, 1 - best, best)
    systems = np.stack([close, best, best * (generator.random(100) < 0.5), best])
    assert level_with_best(systems, SampledClusters.single(100), 0).tolist() == [True, True, False, True]
    assert level_with_best(systems[[2, 0, 1, 3]], SampledClusters.single(100), 0).tolist() == [False, True, True, True]


def test_passages_decide_what_is_level():
    """Ten passages with ten equal answers each are ten observations, not a hundred."""
    best = np.ones(100)
    worse = np.repeat([1.0] * 7 + [0.0] * 3, 10)
    systems = np.stack([best, worse])
    assert level_with_best(systems, SampledClusters.single(100), 0).tolist() == [True, False]
    assert level_with_best(systems, SampledClusters(np.repeat(np.arange(10), 10).tolist()), 0).tolist() == [True, True]


@pytest.mark.statistical
@pytest.mark.parametrize("passages", [8, 30])
def test_few_passages_seldom_make_equal_systems_differ(passages):
    """Twenty systems answer four questions about each passage alike. Of 100 families, 14 are four deviations more."""
    generator = numbers(0)
    clusters = SampledClusters(np.repeat(np.arange(passages), 4).tolist())
    families = np.repeat(generator.integers(0, 2, (100, 20, passages)).astype(float), 4, axis=2)
    assert sum(not level_with_best(systems, clusters, 0).all() for systems in families) <= 14


def test_five_changed_passages_are_level():
    """If all change in one direction, their p-value is 1/16. Eight are enough."""
    clusters = SampledClusters(np.repeat(np.arange(100), 4).tolist())
    for changed, level in ((5, True), (8, False)):
        worse = np.repeat([0.0] * changed + [1.0] * (100 - changed), 4)
        assert level_with_best(np.stack([np.ones(400), worse]), clusters, 0).tolist() == [True, level]


def test_without_a_comparison_every_system_is_level():
    assert level_with_best(np.array([[1.0, 0.0]]), SampledClusters.single(2), 0).tolist() == [True]
    one = SampledClusters(["p", "p"])
    assert level_with_best(np.array([[1.0, 1.0], [0.0, 0.0]]), one, 0).tolist() == [True, True]
    same = np.ones((3, 20))
    assert level_with_best(same, SampledClusters.single(20), 0).all()
