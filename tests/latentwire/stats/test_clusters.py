"""SampledClusters of examples: sums, variances, resampling and halves against hand computation and theory."""

import math

import numpy as np
import pytest

from latentwire.stats import clusters as module
from latentwire.stats.clusters import RESAMPLES, SampledClusters
from latentwire.stats.intervals import resampled_means
from tests.helpers.random import numbers


def like_f1(count, seed=0):
    """Return scores distributed like F1: many zeros and ones, some between."""
    generator = numbers(seed)
    return np.where(generator.random(count) < 0.4, generator.random(count), generator.integers(0, 2, count))


LABELS = ["a", "b", "a", "c", "c", "c"]
SCORES = np.array([[1.0, 0.0, 1.0, 0.5, 0.0, 0.5], [0.0, 1.0, 0.5, 0.0, 0.0, 1.0]])


def test_sums_and_sizes_by_hand():
    clusters = SampledClusters(LABELS)
    assert (clusters.count, clusters.examples, clusters.sizes.tolist()) == (3, 6, [2.0, 1.0, 3.0])
    np.testing.assert_allclose(clusters.sums(SCORES), [[2.0, 0.0, 1.0], [0.5, 1.0, 1.0]])
    np.testing.assert_array_equal(SampledClusters.single(6).sums(SCORES), SCORES)


def test_labels_may_be_of_any_kind_and_in_any_order():
    np.testing.assert_allclose(SampledClusters([7, "x", 7]).sums(np.array([[1.0, 2.0, 4.0]])), [[5.0, 2.0]])


def test_variances_are_those_of_the_jackknife():
    """The means 1/2 and 5/12 without each cluster of 2, 1 and 3 examples, by hand."""
    first = ((1 / 4 - 1 / 2) ** 2 + (3 / 5 - 1 / 2) ** 2 + (2 / 3 - 1 / 2) ** 2) * 2 / 3
    second = ((2 / 4 - 5 / 12) ** 2 + (1.5 / 5 - 5 / 12) ** 2 + (1.5 / 3 - 5 / 12) ** 2) * 2 / 3
    np.testing.assert_allclose(SampledClusters(LABELS).variances(SCORES), [first, second])


def test_clusters_of_unequal_size_show_less():
    assert SampledClusters.single(7).effective == SampledClusters(list("abcabc")).effective + 4 == 7
    assert SampledClusters(LABELS).effective == pytest.approx(36 / 14)  # 6² / (2² + 1² + 3²)


def test_variances_of_single_examples_are_those_of_a_mean():
    scores = like_f1(40)[None]
    np.testing.assert_allclose(SampledClusters.single(40).variances(scores), scores.var(axis=1, ddof=1) / 40)
    assert SampledClusters(["a"] * 40).variances(scores).tolist() == [math.inf]


def test_design_effects_of_single_and_of_identical_examples():
    scores = like_f1(50)
    single, fourfold = SampledClusters.single(50), SampledClusters(np.repeat(np.arange(50), 4).tolist())
    np.testing.assert_allclose(single.design_effects(scores[None]), [1.0])
    # s² over 50 clusters against s² over 200 examples: 4 but for the two degrees of freedom
    np.testing.assert_allclose(fourfold.design_effects(np.repeat(scores, 4)[None]), [4 * (199 / 200) / (49 / 50)])
    np.testing.assert_allclose(fourfold.design_effects(np.full((1, 200), 0.3)), [1.0])
    assert SampledClusters(["a"]).design_effects(np.array([[0.5]])).tolist() == [1.0]


def test_clusters_are_resampled_as_a_whole():
    """The means are ratios: a large cluster that is drawn twice counts twice, with all of its examples."""
    clusters = SampledClusters(LABELS)
    draws = np.random.default_rng(3).multinomial(3, np.full(3, 1 / 3), size=RESAMPLES).astype(float)
    totals, sizes = draws @ np.array([2.0, 0.0, 1.0]), draws @ np.array([2.0, 1.0, 3.0])
    means = clusters.resampled_means(SCORES, seed=3)
    assert means.shape == (2, RESAMPLES)
    np.testing.assert_allclose(means[0], totals / sizes)


@pytest.mark.statistical
def test_resampled_means_of_clusters_have_their_variance():
    generator = numbers(0)
    labels = generator.integers(0, 60, 240)
    scores = (generator.random(60)[labels] + generator.random(240) > 1).astype(float)
    clusters = SampledClusters(labels.tolist())
    means = clusters.resampled_means(scores[None], seed=0)[0]
    assert means.mean() == pytest.approx(scores.mean(), abs=0.005)
    assert means.var() == pytest.approx(clusters.variances(scores[None])[0] * 59 / 60, rel=0.12)
    assert means.var() > 1.3 * scores.var() / 240  # the members of a cluster are alike


def test_halves_never_split_a_cluster():
    labels = numbers(0).integers(0, 21, 100)
    clusters = SampledClusters(labels.tolist())
    count = len(set(labels.tolist()))
    firsts = set()
    for seed in range(20):
        first, second = clusters.halves(np.random.default_rng(seed))
        assert (first ^ second).all()
        inside = set(labels[first].tolist())
        assert inside.isdisjoint(labels[second].tolist())
        assert len(inside) == count // 2
        firsts.add(frozenset(inside))
    assert len(firsts) > 15  # random halves


@pytest.mark.parametrize(("count", "resamples"), [(300_000, 8), (2_000_001, 2)])
def test_drawing_in_blocks_changes_nothing(monkeypatch, count, resamples):
    """More draws than one block holds: whole blocks and a rest, and blocks of a single resample."""
    monkeypatch.setattr(module, "RESAMPLES", resamples)
    assert resamples * count > 2_000_000
    scores = np.stack([like_f1(count), np.full(count, 0.25)])
    draws = np.random.default_rng(7).multinomial(count, np.full(count, 1 / count), size=resamples)
    np.testing.assert_allclose(resampled_means(scores, seed=7), scores @ draws.T / count, rtol=1e-12)


@pytest.mark.statistical
def test_resampled_means_match_the_sample():
    """They have its mean and its standard error."""
    scores = like_f1(100)
    means = resampled_means(scores[None], seed=0)[0]
    assert means.shape == (RESAMPLES,)
    error = scores.std() / math.sqrt(100)
    assert means.mean() == pytest.approx(scores.mean(), abs=4 * error / math.sqrt(len(means)))
    assert means.std() == pytest.approx(error, rel=0.04)


def test_all_systems_see_the_same_resamples():
    scores = like_f1(50)
    means = resampled_means(np.stack([scores, 1 - scores, scores]), seed=0)
    np.testing.assert_allclose(means[0] + means[1], 1)
    np.testing.assert_allclose(means[0], means[2])


def test_cached_draws_depend_on_count_and_seed():
    scores = like_f1(50)[None]
    kept = [resampled_means(scores, seed=1), resampled_means(scores[:, :40], seed=1), resampled_means(scores, seed=2)]
    draws = np.random.default_rng(1).multinomial(50, np.full(50, 1 / 50), size=RESAMPLES)
    np.testing.assert_allclose(kept[0], scores @ draws.T / 50)
    assert not np.array_equal(kept[0], kept[2])
    np.testing.assert_array_equal(resampled_means(scores, seed=1), kept[0])
