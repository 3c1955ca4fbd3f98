"""The ranking of a screening: paired by seed, honest about the choice of the best, and its text."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from latentwire.latent_training.candidates import (
    cross_fit_mean,
    interval,
    not_distinguishable,
    p_against_best,
    promoted,
    rank_candidates,
)
from latentwire.latent_training.records import CandidateRow, ScreenedRun, Screening
from latentwire.latent_training.screening import render_ranking
from tests.helpers.random import numbers


def runs(**scores: list[float]) -> list[ScreenedRun]:
    return [
        {"candidate": name, "name": f"{name}{seed}", "status": "ok", "score": score, "scored_by": "f1", "seed": seed,
         "encoder": f"{name}/encoder", "stop_epoch": None}
        for name, own in scores.items()
        for seed, score in enumerate(own)
    ]  # fmt: skip


def ranked(scores: np.ndarray) -> list[CandidateRow]:
    """Return the ranking of K candidates with n seeds, (K, n)."""
    return rank_candidates(runs(**{f"c{k}": [float(x) for x in own] for k, own in enumerate(scores)}))


def screening(*rankings: list[CandidateRow]) -> Screening:
    """Return a screening whose rounds have these rankings."""
    return {"format": 1, "sweep": "s", "runs": [], "rounds": [
        {"stop_epoch": None, "ranking": rows, "cross_fit": cross_fit_mean(rows), "kept": promoted(rows)}
        for rows in rankings
    ]}  # fmt: skip


def test_candidates_are_ranked_by_their_mean_over_seeds():
    rows = rank_candidates(runs(a=[0.1, 0.3], b=[0.5, 0.1], c=[0.9, 0.9]))
    assert [row["candidate"] for row in rows] == ["c", "b", "a"]
    assert rows[1]["mean"] == pytest.approx(0.3)
    failed = runs(a=[0.1, 0.3], b=[0.5, 0.1])
    failed[2] = {**failed[2], "status": "failed", "error": "NaN"}
    assert [row["candidate"] for row in rank_candidates(failed)] == ["a"]


def test_the_interval_is_students():
    scores = [0.2, 0.5, 0.6, 0.4]
    low, high = stats.t.interval(0.95, 3, loc=sum(scores) / 4, scale=stats.sem(scores))
    assert interval(scores) == pytest.approx([low, high], abs=1e-4)
    assert interval([0.3]) is None
    for n in range(2, 12):
        own = [0.001 * k for k in range(n)]
        expected = stats.t.interval(0.95, n - 1, loc=sum(own) / n, scale=stats.sem(own))
        assert interval(own) == pytest.approx(list(expected), abs=1e-5)
    assert interval([0.0, 1.0]) == [-1.0, 1.0]


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (2, 1), (3, 1), (4, 2), (9, 3), (10, 4)])
def test_a_third_is_promoted_and_at_least_one(count, kept):
    rows = ranked(np.arange(count, 0, -1)[:, None] / 10)
    assert promoted(rows) == [f"c{k}" for k in range(kept)]


def test_equal_candidates_at_the_cut_are_all_promoted():
    third = [[0.9, 0.7, 0.8], [0.0, 0.1, 0.2], [0.0, 0.0, 0.3], [0.0, 0.0, 0.2]]
    assert promoted(ranked(np.array(third))) == ["c0", "c1", "c2"]  # the means of c1 and c2 differ by rounding
    assert promoted(ranked(np.zeros((4, 2)))) == ["c0", "c1", "c2", "c3"]


def test_differences_are_paired_by_seed():
    """Seeds differ by far more than candidates do within a seed."""
    seeds = np.array([0.1, 0.7, 0.4, 0.9, 0.2])
    rows = ranked(np.array([seeds, seeds - 0.05 + [0.001, 0, -0.001, 0.002, -0.002]]))
    assert rows[0]["interval"][1] - rows[0]["interval"][0] > 0.5
    found = rows[1]["against_best"]
    assert rows[0]["against_best"] is None and found is not None
    assert found["difference"] == pytest.approx(-0.05)
    low, high = found["interval"]
    assert found["p_value"] < 0.01
    assert -0.055 < low < -0.05 < high < -0.045
    assert not_distinguishable(rows) == []
    mixed = rank_candidates([run for run in runs(a=[0.9, 0.5, 0.8], b=[0.0, 0.1, 0.5]) if run["name"] != "b0"])
    assert mixed[1]["against_best"]["difference"] == pytest.approx(-0.35)  # b has no seed 0
    assert mixed[1]["against_best"]["seeds"] == 2
    half = stats.t.ppf(0.975, 1) * 0.05  # the standard error of -.4 and -.3
    assert mixed[1]["against_best"]["interval"] == pytest.approx([-0.35 - half, -0.35 + half])


def test_of_two_candidates_p_is_students():
    for n in (3, 6):
        differences = -0.1 - 0.02 * numbers(n).standard_normal(n)
        assert p_against_best(differences, 2) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.012)
    assert p_against_best(np.array([-0.2, -0.2, -0.2]), 2) == 1.0  # no known spread


@pytest.mark.statistical
def test_equal_candidates_are_rarely_called_worse():
    """At most 5% of screenings of 9 equal candidates with 3 seeds name a worse one; 600 of them, 4 errors."""
    generator = numbers(0)
    named = 0
    for _ in range(600):
        scores = 0.5 + 0.2 * generator.standard_normal(3) + 0.04 * generator.standard_normal((9, 3))
        named += len(not_distinguishable(ranked(scores))) < 8
    assert 0.015 < named / 600 < 0.05 + 4 * (0.05 * 0.95 / 600) ** 0.5


@pytest.mark.statistical
def test_quiet_candidates_do_not_make_equal_ones_differ():
    """Seven candidates that fail alike have no variance, which must not count for the two that work."""
    generator = numbers(1)
    named = 0
    for _ in range(300):
        scores = np.vstack([0.5 + 0.04 * generator.standard_normal((2, 3)), np.zeros((7, 3))])
        named += not {"c0", "c1"} <= {*not_distinguishable(rows := ranked(scores)), rows[0]["candidate"]}
    assert named / 300 <= 0.05


def test_a_worse_candidate_is_found():
    generator = numbers(2)
    scores = 0.5 + 0.2 * generator.standard_normal(5) + 0.01 * generator.standard_normal((9, 5))
    scores[4] -= 0.3
    rows = ranked(scores)
    assert "c4" not in not_distinguishable(rows)
    assert rows[-1]["candidate"] == "c4"


def test_the_cross_fit_mean_by_hand():
    rows = ranked(np.array([[0.9, 0.3, 0.0], [0.1, 0.8, 0.2]]))
    assert cross_fit_mean(rows) == pytest.approx((0.1 + 0.3 + 0.0) / 3)
    assert cross_fit_mean(ranked(np.array([[0.4, 0.2], [0.2, 0.4]]))) == pytest.approx(0.2)
    tied = ranked(np.array([[0.5, 0.5, 0.8], [0.5, 0.5, 0.2]]))  # level on the first two seeds
    assert cross_fit_mean(tied) == pytest.approx((0.5 + 0.5 + 0.5) / 3)
    assert cross_fit_mean(ranked(np.array([[0.5], [0.4]]))) is None
    assert cross_fit_mean(ranked(np.array([[0.5, 0.4]]))) is None


@pytest.mark.statistical
def test_the_highest_mean_is_too_high_and_cross_fit_is_not():
    """Of 9 equal candidates with 3 seeds, the best mean is .86 standard deviations too high."""
    generator = numbers(3)
    found = [ranked(generator.standard_normal((9, 3))) for _ in range(400)]
    assert np.mean([rows[0]["mean"] for rows in found]) == pytest.approx(0.86, abs=0.1)
    assert np.mean([cross_fit_mean(rows) for rows in found]) == pytest.approx(0.0, abs=0.15)


def test_the_text_names_candidates_level_with_the_best():
    scores = {"a": [0.5, 0.55, 0.6, 0.52], "b": [0.5, 0.56, 0.59, 0.51], "c": [0.1, 0.14, 0.2, 0.13]}
    rows = rank_candidates(runs(**scores))
    text = render_ranking(screening(rows), " model=tiny_random")
    assert "Best: a; not distinguishable from it: b\n" in text
    assert text.endswith(" model=tiny_random")
    assert rows[2]["against_best"]["p_value"] < 0.001
    low, high = rows[2]["against_best"]["interval"]
    assert f"-0.400 [{low:+.3f}, {high:+.3f}] p<0.001" in text
    assert "scored on the left-out one: 0.540. The highest of 3 means, 0.542, is too high on average." in text
    assert "Earlier rounds" not in text
    later = render_ranking(screening(rows, rows[:1]))
    assert "Earlier rounds chose by the same seeds" in later
    assert later.count("left-out") == 1  # one candidate is not a choice


def test_one_seed_and_two_seeds_give_text():
    one = render_ranking(screening(rank_candidates(runs(a=[0.5], b=[0.1]))))
    assert "one seed: no interval  -0.400\n" in one
    assert "scored on the left-out one: unknown without a second seed" in one
    assert "Best: a; not distinguishable from it: b\n" in one
    two = render_ranking(screening(rank_candidates(runs(a=[0.5, 0.6], b=[0.4, 0.4], c=[0.2, 0.4]))))
    assert "Best: a; not distinguishable from it: b, c\n" in two
    alone = render_ranking(screening(rank_candidates(runs(a=[0.5]))))
    assert "one seed: no interval" in alone and "left-out" not in alone
