"""Exact match and F1 against SQuAD's own arithmetic; intervals and paired tests against theory and enumeration."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.text import squad

from latentwire.evaluation.metrics import exact_match, f1_score, normalize_answer
from latentwire.stats import comparison as metrics
from latentwire.stats import intervals
from latentwire.stats.answers import classes_of
from latentwire.stats.comparison import compare_paired, holm, recovered_shares
from latentwire.stats.intervals import bootstrap_interval, resampled_means, wilson_interval
from latentwire.stats.power import detectable_difference, samples_needed, std
from tests.helpers.random import numbers

# --- exact match and F1 ---------------------------------------------------------------------------------------

ODD = [
    *("", " ", "the", "a an the", "The U.S.A.", "usa", "th-e", "red-brick", "redbrick", "an apple", "AN APPLE!"),
    *("apple", "3,000", "3000", "3.5%", "$3.50", "“red”", "red", "theatre", "the_end", "a/an", "naïve", "NAÏVE"),
    *("Straße", "İstanbul", "二〇二四年", "tab\tand\nnewline", "nbsp\u00a0here", "...", "'s", "a's", "red red blue"),
    *("red blue blue", "blue red red", "the cat sat on the mat", "cat on mat", "\u2028", "🙂 red", "x’a’y"),
]
PIECES = st.sampled_from(["the", "A", "an", "red", "Red", "blue", "12", "x", ",", ".", "-", "'", "’", " ", "  ", "\n"])
TEXTS = st.one_of(st.sampled_from(ODD), st.lists(PIECES, max_size=8).map("".join), st.text(max_size=12))


def peer_scores(prediction: str, references: list[str]) -> tuple[float, float]:
    answers = {"text": references, "answer_start": [0] * len(references)}
    scores = squad([{"prediction_text": prediction, "id": "1"}], [{"answers": answers, "id": "1"}])
    return float(scores["exact_match"]) / 100, float(scores["f1"]) / 100


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=3))
def test_scores_equal_torchmetrics(prediction, references):
    em, f1 = peer_scores(prediction, references)
    both_empty = normalize_answer(prediction) == "" and "" in map(normalize_answer, references)
    assert exact_match(prediction, references) == em
    assert f1_score(prediction, references) == pytest.approx(0.0 if both_empty else f1, abs=1e-6)


def test_odd_strings_score_as_in_torchmetrics():
    for prediction, reference in itertools.product(ODD, ODD):
        em, f1 = peer_scores(prediction, [reference])
        if normalize_answer(prediction) or normalize_answer(reference):
            assert f1_score(prediction, [reference]) == pytest.approx(f1, abs=1e-6), (prediction, reference)
        assert exact_match(prediction, [reference]) == em, (prediction, reference)


@pytest.mark.parametrize("prediction", ["", "the", " ...", "A."])
def test_empty_against_empty_matches_but_has_no_f1(prediction):
    assert peer_scores(prediction, ["an"]) == (1.0, 1.0)  # the documented difference
    assert exact_match(prediction, ["an"]) == 1.0
    assert f1_score(prediction, ["an"]) == 0.0


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat,\tsat!", "cat sat"),
        ("U.S.A.", "usa"),
        ("th-e end", "end"),  # punctuation goes first, so that this becomes an article
        ("red-brick", "redbrick"),
        ("theatre of an ant", "theatre of ant"),
        ("“Red” – 5 €", "“red” – 5 €"),  # only ASCII punctuation is dropped
        ("x’a’y", "x’ ’y"),  # a space takes an article's place
        ("a the an", ""),
    ],
)
def test_normalizing_by_hand(text, normal):
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("prediction", "reference", "f1"),
    [
        ("red red blue", "red blue blue", 2 / 3),  # as sets they would be equal
        ("red red", "red", 2 / 3),
        ("blue car", "blue sports car", 4 / 5),
        ("blue", "blue sports car", 1 / 2),
        ("green", "blue sports car", 0.0),
    ],
)
def test_f1_counts_repeated_words(prediction, reference, f1):
    assert f1_score(prediction, [reference]) == pytest.approx(f1)
    assert f1_score(reference, [prediction]) == pytest.approx(f1)


def test_the_best_reference_counts_in_any_order():
    for references in itertools.permutations(["blue bus", "blue car park", "green"]):
        assert f1_score("blue car", references) == pytest.approx(4 / 5)
        assert exact_match("the Green", references) == 1.0
        assert exact_match("blue car", references) == 0.0


# --- intervals of a mean ----------------------------------------------------------------------------------------


def scores_between_0_and_1(count, seed=0):
    """Return scores distributed like F1: many zeros and ones, some between."""
    generator = numbers(seed)
    return np.where(generator.random(count) < 0.4, generator.random(count), generator.integers(0, 2, count))


@pytest.mark.statistical
def test_bootstrap_interval_is_the_normal_one_for_large_samples():
    scores = scores_between_0_and_1(200)
    low, high = bootstrap_interval(list(scores), seed=1)
    half = 1.96 * scores.std() / math.sqrt(200)
    assert low == pytest.approx(scores.mean() - half, abs=0.08 * half)
    assert high == pytest.approx(scores.mean() + half, abs=0.08 * half)


def test_bootstrap_interval_equals_full_enumeration():
    """For a small sample, all resamples can be enumerated."""
    scores = [0.0, 0.1, 0.5, 1.0, 1.0]
    every = np.array([np.mean(draw) for draw in itertools.product(scores, repeat=5)])
    assert bootstrap_interval(scores, seed=0) == pytest.approx(np.quantile(every, [0.025, 0.975]), abs=0.021)


def test_bootstrap_interval_depends_only_on_its_seed():
    scores = scores_between_0_and_1(60)
    assert bootstrap_interval(scores, seed=3) == bootstrap_interval(scores.copy(), seed=3)
    assert bootstrap_interval(scores, seed=3) != bootstrap_interval(scores, seed=4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 2 / 3, 1.0]), min_size=2, max_size=30), st.integers(0, 2**32))
def test_an_interval_contains_the_mean_and_stays_between_0_and_1(scores, seed):
    low, high = bootstrap_interval(scores, seed)
    assert 0 <= low <= np.mean(scores) + 1e-12
    assert np.mean(scores) - 1e-12 <= high <= 1
    assert low < high


@pytest.mark.parametrize(("score", "count"), [(0.0, 1), (0.0, 100), (1.0, 7), (1.0, 100), (0.5, 40)])
def test_equal_scores_get_the_interval_of_a_proportion(score, count):
    assert bootstrap_interval([score] * count, seed=0) == wilson_interval(score * count, count)


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


# --- resampling -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "resamples"), [(300_000, 8), (2_000_001, 2)])
def test_drawing_in_blocks_changes_nothing(monkeypatch, count, resamples):
    """More draws than one block holds: whole blocks and a rest, and blocks of a single resample."""
    monkeypatch.setattr(intervals, "RESAMPLES", resamples)
    assert resamples * count > 2_000_000
    scores = np.stack([scores_between_0_and_1(count), np.full(count, 0.25)])
    draws = np.random.default_rng(7).multinomial(count, np.full(count, 1 / count), size=resamples)
    np.testing.assert_allclose(resampled_means(scores, seed=7), scores @ draws.T / count, rtol=1e-12)


@pytest.mark.statistical
def test_resampled_means_match_the_sample():
    """They have its mean and its standard error."""
    scores = scores_between_0_and_1(100)
    means = resampled_means(scores[None], seed=0)[0]
    assert means.shape == (metrics.RESAMPLES,)
    error = scores.std() / math.sqrt(100)
    assert means.mean() == pytest.approx(scores.mean(), abs=4 * error / math.sqrt(len(means)))
    assert means.std() == pytest.approx(error, rel=0.04)


def test_all_systems_see_the_same_resamples():
    scores = scores_between_0_and_1(50)
    means = resampled_means(np.stack([scores, 1 - scores, scores]), seed=0)
    np.testing.assert_allclose(means[0] + means[1], 1)
    np.testing.assert_allclose(means[0], means[2])


# --- paired comparisons -----------------------------------------------------------------------------------------


def answered(generator, difficulty, skill=0.0):
    """Return scores of one system, 0 or 1, given the difficulty of each example."""
    return (generator.random(difficulty.shape) < np.clip(difficulty + skill, 0, 1)).astype(float)


@pytest.mark.statistical
def test_equal_systems_are_rarely_called_different():
    """An A/A check with 1,000 independent pairs; a shared baseline would correlate their errors."""
    generator = numbers(0)
    p_values = []
    for seed in range(5):
        difficulty = generator.random((200, 80))
        differences = answered(generator, difficulty) - answered(generator, difficulty)
        p_values += [comparison.p_value for comparison in compare_paired(differences, np.zeros(80), seed)]
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.09  # .05 and four standard errors, and a little for n = 80
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
    assert max(better.p_holm, worse.p_holm) < 0.001 < equal.p_value
    assert abs(equal.difference) < 0.2


def test_a_difference_is_a_mean_within_its_interval():
    baseline = np.array([0.0, 0.5, 1.0, 0.2])
    systems = np.array([[1.0, 0.5, 1.0, 0.2], [0.0, 0.0, 0.0, 0.1]])
    first, second = compare_paired(systems, baseline, seed=0)
    assert first.difference == pytest.approx(0.25)
    assert second.difference == pytest.approx(-0.4)
    for comparison in (first, second):
        assert comparison.interval[0] <= comparison.difference <= comparison.interval[1]


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


@pytest.mark.parametrize("sign", [1, -1])
def test_a_p_value_is_the_share_of_extreme_resamples(sign):
    differences = sign * np.array([0.3, -0.2, 0.9, 0.1])
    every = np.array([np.mean(draw) for draw in itertools.product(differences, repeat=4)])
    extreme = np.mean(np.abs(every - differences.mean()) >= abs(differences.mean()) - 1e-9)
    (comparison,) = compare_paired(differences[None], np.zeros(4), seed=0)
    assert 0.1 < extreme < 0.5
    assert comparison.p_value == pytest.approx(extreme, abs=0.02)
    assert comparison.interval == pytest.approx(np.quantile(every, [0.025, 0.975]), abs=0.051)


def test_a_p_value_is_never_zero_and_identical_systems_have_one():
    baseline = scores_between_0_and_1(40)
    same, all_better = compare_paired(np.stack([baseline, baseline + 0.5]), baseline, seed=0)
    assert same == metrics.Comparison(0.0, (0.0, 0.0), 1.0, 1.0)
    assert all_better.p_value == pytest.approx(1 / 10_001)


def test_comparisons_are_seeded_and_corrected_as_one_family():
    generator = numbers(0)
    difficulty = generator.random(30)
    baseline = answered(generator, difficulty)
    systems = np.stack([answered(generator, difficulty, skill) for skill in (0.1, 0.2, -0.2, 0.0)])
    comparisons = compare_paired(systems, baseline, seed=5)
    assert comparisons == compare_paired(systems, baseline, seed=5)
    assert comparisons != compare_paired(systems, baseline, seed=6)
    assert [c.p_holm for c in comparisons] == list(holm(np.array([c.p_value for c in comparisons])))
    alone = [compare_paired(system[None], baseline, seed=5)[0] for system in systems]
    assert [c.p_value for c in comparisons] == [c.p_value for c in alone]
    assert all(c.p_holm == c.p_value for c in alone)
    assert compare_paired(np.empty((0, 30)), baseline, seed=5) == []


@pytest.mark.parametrize(
    ("p_values", "corrected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # the step down: .04 may not fall below .03's .06
        ([0.6, 0.5, 0.9], [1.0, 1.0, 1.0]),
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
        ([0.2], [0.2]),
        ([], []),
    ],
)
def test_holm_by_hand(p_values, corrected):
    np.testing.assert_allclose(holm(np.array(p_values)), corrected)


# --- detectable differences -------------------------------------------------------------------------------------


def like_f1(generator, difficulty):
    """Return scores like F1 in question answering: half are 0, a third are 1, the others between."""
    chance = generator.random(difficulty.shape)
    between = generator.choice([0.25, 0.4, 0.5, 2 / 3, 0.8], size=difficulty.shape)
    return np.where(
        chance < 0.85 * difficulty, 0.0, np.where(chance < difficulty + 0.15 * (1 - difficulty), between, 1.0)
    )


@pytest.mark.statistical
def test_equal_systems_with_own_noise_rarely_differ():
    """An A/A check like the analysis: equal systems with independent noise on the same examples."""
    generator = numbers(1)
    called = 0
    for seed in range(200):
        difficulty = generator.beta(0.7, 0.7, size=100)
        a, b = like_f1(generator, difficulty), like_f1(generator, difficulty)
        assert np.mean((a == 0) | (a == 1)) > 0.5
        (comparison,) = compare_paired(a[None], b, seed // 40)  # new draws for each seed would take long
        called += comparison.p_value < 0.05
    assert 1 <= called <= 23  # 10 and four standard deviations, and not a test that never finds anything


def test_the_detectable_difference_by_hand():
    # z(.975) = 1.959964, z(.8) = .841621
    assert detectable_difference(0.5, 100, 0.05) == pytest.approx((1.959964 + 0.841621) * 0.05, abs=1e-6)
    assert detectable_difference(0.5, 100, 0.05 / 10) == pytest.approx((2.807034 + 0.841621) * 0.05, abs=1e-6)
    assert samples_needed(0.5, 0.05, 0.05) == 785  # 784.9
    assert samples_needed(0.5, 0.1, 0.05) == 197  # 196.2
    assert samples_needed(0.0, 0.1, 0.05) == 1


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("count", [30, 250])
def test_the_detectable_difference_is_seen_four_times_in_five(count):
    generator = numbers(0)
    difference = detectable_difference(0.4, count, 0.05)
    drawn = generator.normal(difference, 0.4, size=(2000, count))
    seen = [c.p_value < 0.05 for c in compare_paired(drawn, np.zeros(count), 0)]
    assert np.mean(seen) == pytest.approx(0.8, abs=0.03)


def test_the_samples_needed_detect_the_difference():
    for wished in (0.03, 0.1):
        count = samples_needed(0.4, wished, 0.01)
        assert detectable_difference(0.4, count, 0.01) <= wished < detectable_difference(0.4, count - 1, 0.01)


def test_std_is_the_sample_standard_deviation():
    assert std(np.array([0.0, 1.0, 1.0, 0.0])) == pytest.approx(math.sqrt(1 / 3))
    assert std(np.array([0.3])) == 0.0


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
    error = (half - empty - share * room).std() / room.mean() / math.sqrt(200)
    assert interval == pytest.approx((share - 1.96 * error, share + 1.96 * error), abs=0.2 * error)


def test_no_recovered_share_if_clean_is_not_above_empty():
    zeros, ones = np.zeros(10), np.ones(10)
    assert recovered_shares(np.stack([ones, zeros]), zeros, ones, 0) == [(None, None)] * 2
    assert recovered_shares(ones[None], zeros, zeros, 0) == [(None, None)]
    # above on average, but not clearly: no share
    clean = np.array([1.0, 0.0, 0.0, 0.0])
    assert recovered_shares(clean[None], clean, zeros[:4], 0) == [(None, None)]


def test_cached_draws_depend_on_count_and_seed():
    scores = scores_between_0_and_1(50)[None]
    kept = [resampled_means(scores, seed=1), resampled_means(scores[:, :40], seed=1), resampled_means(scores, seed=2)]
    draws = np.random.default_rng(1).multinomial(50, np.full(50, 1 / 50), size=metrics.RESAMPLES)
    np.testing.assert_allclose(kept[0], scores @ draws.T / 50)
    assert not np.array_equal(kept[0], kept[2])
    np.testing.assert_array_equal(resampled_means(scores, seed=1), kept[0])


@pytest.mark.parametrize(("count", "least"), [(1, 1.0), (2, 0.5), (4, 0.125), (6, 0.03125)])
def test_few_equal_differences_have_a_minimum_p_value(count, least):
    """Equal differences have no variance to resample; the smallest p-value of sign flips is 2^(1 - n)."""
    (comparison,) = compare_paired(np.ones((1, count)), np.zeros(count), 0)
    assert comparison.p_value == pytest.approx(least)
    half = np.concatenate([np.ones((1, count)), np.zeros((1, 20))], axis=1)
    assert compare_paired(half, np.zeros(count + 20), 0)[0].p_value >= least


@pytest.mark.slow
@pytest.mark.statistical
def test_few_examples_keep_the_error_rate():
    """Of equal systems at most 7% are called different, for 1 to 8 examples."""
    generator = numbers(0)
    for count in range(1, 9):
        pairs = generator.integers(0, 2, (400, 2, count)).astype(float)
        called = sum(compare_paired(a[None], b, 0)[0].p_value < 0.05 for a, b in pairs)
        assert called <= 0.07 * len(pairs), count


def test_similar_texts_share_a_class():
    texts = ["In 1998.", "1998", "the year 1998", "Paris", "  paris!", "", "."]
    assert classes_of(texts, 0.6) == [0, 0, 1, 2, 2, 3, 3]  # word F1 with the first text: 2/3, then 1/2
    assert classes_of(texts, 1.1) == [0, 1, 2, 3, 3, 4, 4]  # only equal words
