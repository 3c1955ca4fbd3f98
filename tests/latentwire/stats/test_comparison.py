"""Paired comparisons against enumeration, planted differences and the rates of their errors."""

import itertools

import numpy as np
import pytest

from latentwire.stats.clusters import SampledClusters
from latentwire.stats.comparison import (
    PairedDifference,
    compare_paired,
    corrected,
    holm,
    paired_differences,
    partial_conjunction,
    recovered_shares,
)
from tests.helpers.random import numbers


def answered(generator, difficulty, skill=0.0):
    """Return scores of one system, 0 or 1, given the difficulty of each example."""
    return (generator.random(difficulty.shape) < np.clip(difficulty + skill, 0, 1)).astype(float)


def difference_of(values, clusters=None, largest=1.0, comparisons=1):
    """Return the paired difference of one system whose differences from the baseline are given."""
    values = np.asarray(values, dtype=float)
    (found,) = paired_differences(values[None], np.zeros(len(values)), 0, clusters, largest, comparisons)
    return found


# --- one inversion ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [5, 9, 11, 12, 40])
def test_interval_and_p_value_agree(count):
    """The p-value is below 5% exactly if 0 is outside of the 95% interval, by enumeration and by random splits."""
    generator = numbers(count)
    near = 0
    for clustered in (False, True):
        chances = generator.random((150, 1)) * np.array([[0.7, 0.3]])
        chance = generator.random((150, count))
        values = (chance < chances[:, :1]).astype(float) - (chance > 1 - chances[:, 1:])
        values *= generator.choice([0.25, 0.5, 1.0], values.shape)
        clusters = SampledClusters(generator.integers(0, count // 2, count).tolist()) if clustered else None
        for one in paired_differences(values, np.zeros(count), 3, clusters, 1.0):
            low, high = one.interval
            assert (one.p_value < 0.05) == (low > 1e-9 or high < -1e-9), one
            assert low - 1e-12 <= one.difference <= high + 1e-12
            near += 0.01 < one.p_value < 0.15
    assert count < 9 or near >= 3  # some are close to the limit


def flipped_p(sums, sizes, unseen):
    """Return the p-value of all sign flips of clusters and two unseen changes; a part without examples counts."""
    values = np.array([*sums, unseen, -unseen])
    extreme = 0
    for signs in itertools.product([1, -1], repeat=len(values)):
        own = np.array(signs[: len(sizes)])
        one_part = (own == 1).all() or (own == -1).all()
        extreme += one_part or abs(values @ np.array(signs)) >= abs(values.sum()) - 1e-9
    return extreme / 2 ** len(values)


@pytest.mark.parametrize(
    ("differences", "labels"),
    [
        ([1, 1, 1, 1, 1, 1, -1, 0], None),
        ([0.5, 1, 1, -0.25, 1, 1, 1, 0.5, 0], None),
        ([-1, -1, 1, 0, -1, -0.5, -1, -1, 0, 0, 1], None),  # eleven clusters: the last that are enumerated
        ([1, 1, 1, 1, 1, -0.5, 1, 1, 1, 1, 0, 0], "aabbccdefghi"),
        ([0, -0.5, 1, 1, 1, 1, 1, -0.5, -1, 1, 1, 1], "abbbcceeefff"),  # changes that come together
    ],
)
def test_few_clusters_have_all_their_splits_enumerated(differences, labels):
    differences = np.array(differences, dtype=float)
    clusters = SampledClusters(labels or range(len(differences)))
    count, changed = len(differences), np.count_nonzero(differences)
    sums = clusters.sums(differences[None])[0]
    together = max(1.0, (sums**2).sum() / (differences**2).sum())
    unseen = np.sqrt((count - changed + 2) / (count + 2) * together)  # five changes or more
    expected = flipped_p(sums, clusters.sizes, unseen)
    found = difference_of(differences, clusters)
    assert found.p_value == pytest.approx(max(expected, 2.0 ** (1 - np.count_nonzero(sums))))
    assert 0 < expected < 1


def test_fewer_than_five_changes_enlarge_the_unseen_ones():
    """Of eight examples, two or three changed: 1 + .9 (1 - K / 5) times the size of the unseen changes."""
    for changed, larger in ((2, 1.54), (3, 1.36)):
        values = np.array([1.0] * changed + [0.0] * (8 - changed))
        unseen = np.sqrt((8 - changed + 2) / 10) * larger
        assert difference_of(values).p_value == pytest.approx(flipped_p(values, np.ones(8), unseen))


def test_without_a_change_the_interval_is_that_of_rare_changes():
    """At least the exact two-sided bound of the changed share, 3.69 / N, to both sides, and not much more."""
    for count in (16, 50, 100, 400):
        found = difference_of(np.zeros(count))
        low, high = found.interval
        assert (found.difference, found.p_value, found.changed) == (0.0, 1.0, 0)
        assert 1 - 0.025 ** (1 / count) < high < 6.5 / count
        assert low == pytest.approx(-high, rel=0.15)


def test_the_size_of_unseen_changes_is_the_largest_of_the_metric():
    """Without it, it is the largest difference of the system itself."""
    values = np.array([0.1] * 12 + [0.0] * 88)
    by_metric, by_system = difference_of(values), difference_of(values, largest=None)
    assert by_metric.interval[0] < 0 < by_system.interval[0]
    assert by_metric.p_value > 0.05 > by_system.p_value
    assert difference_of(np.ones(8)).interval[1] == 1.0  # no difference exceeds the largest
    assert difference_of(-np.ones(8), largest=None).interval[0] < -1.0  # an unseen one may go further


@pytest.mark.statistical
@pytest.mark.parametrize("rate", [0.01, 0.02, 0.05, 0.1, 0.3])
def test_sparse_changes_are_covered(rate):
    """All changes are for the worse. Of 400 intervals, 95% less four standard errors cover the rate."""
    values = -(numbers(0).random((400, 100)) < rate).astype(float)
    found = paired_differences(values, np.zeros(100), 0, None, 1.0, 1)
    held = [one.interval[0] <= -rate + 1e-9 <= one.interval[1] + 2e-9 for one in found]
    assert np.mean(held) >= 0.906


def test_clustering_widens_the_interval():
    """Four equal answers for each passage are as one, but for the unseen changes."""
    single = np.array([1.0] * 8 + [-1.0] * 2 + [0.0] * 10)
    fourfold = np.repeat(single, 4)
    clusters = SampledClusters(np.repeat(np.arange(20), 4).tolist())
    alone, clustered = difference_of(fourfold), difference_of(fourfold, clusters)
    assert clustered.difference == alone.difference
    assert np.ptp(clustered.interval) > 1.6 * np.ptp(alone.interval)
    assert alone.p_value < 0.001 < 0.02 < clustered.p_value
    assert (alone.changed, clustered.changed) == (40, 10)


@pytest.mark.statistical
def test_passages_keep_the_error_rate():
    """Equal systems whose four questions about a passage change together."""
    labels = np.repeat(np.arange(25), 4)
    values = numbers(0).choice([-1.0, 0.0, 1.0], (400, 25))[:, labels]
    rates = [
        np.mean([one.p_value < 0.05 for one in paired_differences(values, np.zeros(100), 0, clusters, 1.0, 1)])
        for clusters in (SampledClusters(labels.tolist()), None)
    ]
    assert rates[0] <= 0.094  # 5% and four standard errors
    assert rates[1] >= 0.2  # as if the questions were independent


# --- small p-values ---------------------------------------------------------------------------------------------


def test_a_large_family_has_small_p_values():
    """810 comparisons: with 10,000 splits, no p-value could be below .08 after Holm's correction."""
    best = np.array([1.0] * 24 + [0.0] * 6)
    few, many = difference_of(best), difference_of(best, comparisons=810)
    assert few.p_value == pytest.approx(1 / 10_001)
    assert many.p_value < 1e-5
    others = [PairedDifference(0.0, (-1.0, 1.0), 1.0, 20)] * 809
    assert corrected([many, *others])[0].p_holm < 0.01
    assert many.interval == few.interval


def test_a_p_value_is_never_zero_and_identical_systems_have_one():
    baseline = numbers(0).random(40)
    same, all_better = compare_paired(np.stack([baseline, baseline + 0.5]), baseline, seed=0)
    assert (same.difference, same.p_value, same.p_holm) == (0.0, 1.0, 1.0)
    assert all_better.p_value == pytest.approx(1 / 10_001)


@pytest.mark.parametrize(("count", "least"), [(1, 1.0), (2, 0.5), (4, 0.125), (5, 0.0625), (6, 0.03125)])
def test_few_changed_clusters_have_a_minimum_p_value(count, least):
    """It is 2^(1 - K), also with unchanged examples, where the unseen changes alone would give less."""
    assert difference_of(np.ones(count)).p_value >= least
    for unchanged in (1, 20, 300):
        found = difference_of([1.0] * count + [0.0] * unchanged)
        assert found.p_value >= least
        assert (found.interval[0] > 1e-9) == (found.p_value < 0.05) == (count > 5)
        worse = difference_of([-1.0] * count + [0.0] * unchanged)
        assert (worse.interval[1] < -1e-9) == (worse.p_value < 0.05) == (count > 5)
        assert found.testable == (count > 5)
        assert found.changed == count
    clustered = difference_of(
        [1.0] * 2 * count + [0.0] * 60, SampledClusters([*np.repeat(range(count), 2), *range(100, 160)])
    )
    assert clustered.p_value >= least and clustered.changed == count


def test_changes_that_cancel_in_a_cluster_are_no_change():
    values = [1.0, -1.0] * 8 + [0.0] * 10
    clusters = SampledClusters([*np.repeat(range(8), 2), *range(8, 18)])
    assert (difference_of(values, clusters).changed, difference_of(values).changed) == (0, 16)


# --- families ---------------------------------------------------------------------------------------------------


def test_comparisons_without_a_test_do_not_enter_the_family():
    """Of five changed passages none can be significant, so Holm corrects for the other two only."""
    found = [PairedDifference(0.1, (0.0, 0.2), p, changed) for p, changed in ((0.01, 20), (0.03, 6), (0.0625, 5))]
    assert [one.p_holm for one in corrected(found)] == pytest.approx([0.02, 0.03, 0.0625])
    assert corrected([]) == []
    all_tested = [PairedDifference(0.1, (0.0, 0.2), p, 20) for p in (0.01, 0.03, 0.0625)]
    assert [one.p_holm for one in corrected(all_tested)] == pytest.approx([0.03, 0.06, 0.0625])


@pytest.mark.parametrize(
    ("p_values", "alpha", "helped"),
    [
        ([0.5, 0.001, 0.02, 0.01], 0.05, 3),  # 4 x .001, 3 x .01, 2 x .02, but 1 x .5
        ([0.001, 0.02, 0.02, 0.5], 0.05, 1),  # 3 x .02 is too large, though 2 x .02 is not
        ([0.03, 0.04], 0.05, 0),  # 2 x .03 is too large, and testing stops there
        ([0.01, 0.02], 0.05, 2),
        ([0.05], 0.05, 1),
        ([], 0.05, 0),
    ],
)
def test_the_partial_conjunction_by_hand(p_values, alpha, helped):
    assert partial_conjunction(np.array(p_values), alpha) == helped


def test_comparisons_are_seeded_and_corrected_as_one_family():
    generator = numbers(0)
    difficulty = generator.random(60)
    baseline = answered(generator, difficulty)
    systems = np.stack([answered(generator, difficulty, skill) for skill in (0.1, 0.2, -0.2, 0.0)])
    comparisons = compare_paired(systems, baseline, seed=5)
    assert comparisons == compare_paired(systems, baseline, seed=5)
    assert comparisons != compare_paired(systems, baseline, seed=6)
    assert [c.p_holm for c in comparisons] == list(holm(np.array([c.p_value for c in comparisons])))
    alone = [compare_paired(system[None], baseline, seed=5)[0] for system in systems]
    assert [c.p_value for c in comparisons] == [c.p_value for c in alone]
    assert all(c.p_holm == c.p_value for c in alone)
    assert compare_paired(np.empty((0, 60)), baseline, seed=5) == []


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # the step down: .04 may not fall below .03's .06
        ([0.6, 0.5, 0.9], [1.0, 1.0, 1.0]),
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
        ([0.2], [0.2]),
        ([], []),
    ],
)
def test_holm_by_hand(p_values, expected):
    np.testing.assert_allclose(holm(np.array(p_values)), expected)


# --- error rates ------------------------------------------------------------------------------------------------


@pytest.mark.statistical
def test_equal_systems_are_rarely_called_different():
    """An A/A check with 1,000 independent pairs; a shared baseline would correlate their errors."""
    generator = numbers(0)
    p_values = []
    for seed in range(5):
        difficulty = generator.random((200, 80))
        differences = answered(generator, difficulty) - answered(generator, difficulty)
        p_values += [one.p_value for one in paired_differences(differences, np.zeros(80), seed, None, 1.0, 1)]
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.08  # .05 and four standard errors
    assert 0.4 < np.mean(np.array(p_values) < 0.5) < 0.6  # the p-values are not merely too high


@pytest.mark.statistical
def test_planted_differences_are_found_with_the_right_sign():
    generator = numbers(0)
    difficulty = generator.random(150)
    systems = np.stack([answered(generator, difficulty, skill) for skill in (0.3, -0.3, 0.0)])
    better, worse, equal = compare_paired(systems, answered(generator, difficulty), seed=0)
    assert better.difference > 0.1
    assert better.interval[0] > 0
    assert worse.difference < -0.1
    assert worse.interval[1] < 0
    assert max(better.p_holm, worse.p_holm) < 0.002 < equal.p_value
    assert abs(equal.difference) < 0.2


@pytest.mark.statistical
def test_pairing_matters():
    """A small advantage on every example is significant; after shuffling the examples it is not."""
    generator = numbers(0)
    baseline = generator.random(100)
    system = baseline + generator.normal(0.01, 0.005, 100)
    (paired,) = compare_paired(system[None], baseline, seed=0)
    (shuffled,) = compare_paired(generator.permutation(system)[None], baseline, seed=0)
    assert paired.difference == pytest.approx(shuffled.difference)
    assert paired.p_value < 0.001 < shuffled.p_value


@pytest.mark.slow
@pytest.mark.statistical
def test_few_examples_keep_the_error_rate():
    """Of equal systems at most 5% and four standard errors are called different, for 1 to 8 examples."""
    generator = numbers(0)
    for count in range(1, 9):
        differences = np.diff(generator.integers(0, 2, (400, 2, count)).astype(float), axis=1)[:, 0]
        found = paired_differences(differences, np.zeros(count), 0, None, 1.0, 1)
        assert np.mean([one.p_value < 0.05 for one in found]) <= 0.094, count


# --- recovered shares -------------------------------------------------------------------------------------------


@pytest.mark.statistical
def test_recovered_share_is_relative_to_empty_and_clean():
    generator = numbers(0)
    empty = (generator.random(200) < 0.1).astype(float)
    clean = np.maximum(empty, generator.random(200) < 0.7)
    half = np.where(generator.random(200) < 0.5, clean, empty)
    shares = recovered_shares(np.stack([clean, empty, half]), clean, empty, seed=0)
    assert shares[0] == (1.0, (1.0, 1.0))
    assert shares[1] == (0.0, (0.0, 0.0))
    share, interval = shares[2]
    assert share == pytest.approx((half.mean() - empty.mean()) / (clean.mean() - empty.mean()))
    # the ratio of two means by the delta method
    room = clean - empty
    error = (half - empty - share * room).std() / room.mean() / np.sqrt(200)
    assert interval == pytest.approx((share - 1.96 * error, share + 1.96 * error), abs=0.2 * error)
    fourfold = SampledClusters(np.repeat(np.arange(50), 4).tolist())
    rows = [np.repeat(row[:50], 4) for row in (half, clean, empty)]
    ((_, clustered),) = recovered_shares(rows[0][None], rows[1], rows[2], 0, fourfold)
    ((_, alone),) = recovered_shares(half[None, :50], clean[:50], empty[:50], 0)
    assert clustered == pytest.approx(alone)


def test_few_clusters_give_a_share_no_interval():
    """All resamples of one cluster are equal, so its interval would have no width."""
    clean, empty, half = np.ones(60), np.zeros(60), np.arange(60) % 2.0
    for clusters, known in ((1, False), (15, False), (16, True)):
        labels = SampledClusters((np.arange(60) % clusters).tolist())
        ((share, interval),) = recovered_shares(half[None], clean, empty, 0, labels)
        assert (share, interval is not None) == (0.5, known), clusters


def test_no_recovered_share_if_clean_is_not_above_empty():
    zeros, ones = np.zeros(10), np.ones(10)
    assert recovered_shares(np.stack([ones, zeros]), zeros, ones, 0) == [(None, None)] * 2
    assert recovered_shares(ones[None], zeros, zeros, 0) == [(None, None)]
    # above on average, but not clearly: no share
    clean = np.array([1.0, 0.0, 0.0, 0.0])
    assert recovered_shares(clean[None], clean, zeros[:4], 0) == [(None, None)]
