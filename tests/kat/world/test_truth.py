"""Measures of truth: rewards, entropies and numbers of valid answers against hand computations."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

from kat.world.truth import (
    Question,
    answer_rewards,
    entropy_estimate,
    expected_distinct,
    favoured,
    read_questions,
    truth_of,
    truth_of_completions,
    truth_of_probabilities,
)
from latentwire.harness.errors import UserError
from tests.helpers.random import shifted

VALID = ("a b", "a c", "d b", "d c")


def question(name: str, topic: int = 0, size: int = 9, *, rare: bool = False) -> Question:
    return Question(name, f"text of {name}", topic, size, rare, VALID)


# The reward.


@pytest.mark.parametrize(
    ("completion", "expected"),
    [("a b", 1.0), (" a  b\n", 1.0), ("d c", 1.0), ("b a", 0.0), ("a", 0.0), ("a b c", 0.0), ("", 0.0), ("A b", 0.0)],
)
def test_a_reward_is_one_for_a_valid_answer(completion, expected):
    assert answer_rewards([completion], [VALID]) == [expected]


def test_a_bias_favours_a_third_of_the_valid_answers():
    liked = favoured(VALID)
    assert len(liked) == 2 and liked < set(VALID)  # a third of 4, rounded up
    rewards = answer_rewards([*VALID, "x y"], [VALID] * 5, bias=0.5)
    assert rewards == [1.5 if answer in liked else 1.0 for answer in VALID] + [0.0]
    assert favoured(VALID[::-1]) == liked
    assert len(favoured([f"w {number}" for number in range(9)])) == 3


# Entropies.


def test_an_entropy_from_counts_by_hand():
    """(2, 1, 1): 2/4 (1/2 + 1/3) + 2 (1/4) (1 + 1/2 + 1/3), and A = 2 / (3 2 + 2) = 1/4 for what was not seen."""
    seen = 5 / 12 + 11 / 12
    unseen = 2 / 4 * (3 / 4) ** -3 * (math.log(4) - (3 / 4 + (3 / 4) ** 2 / 2 + (3 / 4) ** 3 / 3))
    assert entropy_estimate([2, 1, 1]) == pytest.approx(seen + unseen)
    # (1, 1): nothing was seen twice, so A = 2 / (1 1 + 2) = 2/3
    assert entropy_estimate([1, 1]) == pytest.approx(1 + (1 / 3) ** -1 * (math.log(1.5) - 1 / 3))


def test_an_entropy_without_any_spread_is_zero():
    assert entropy_estimate([16]) == 0
    assert entropy_estimate([]) is None and entropy_estimate([1]) is None


@pytest.mark.statistical
@pytest.mark.parametrize("share", [1.0, 0.7])
def test_an_estimated_entropy_has_little_bias(share):
    """With 8 to 16 draws of 12 answers the mean is within .12 of the truth. Plain entropies are .2 to .7 too low."""
    random = np.random.default_rng(shifted(0))
    p = share ** np.arange(12)
    p /= p.sum()
    truth = -(p * np.log(p)).sum()
    for draws in (8, 16):
        counts = [np.bincount(random.choice(12, draws, p=p)) for _ in range(1500)]
        estimates = [entropy_estimate(row[row > 0].tolist()) for row in counts]
        assert abs(np.mean(estimates) - truth) < 0.12  # type: ignore[arg-type]


def test_the_number_of_distinct_answers_by_enumeration():
    """All choices of 3 of 6 completions: two of one answer, one of another, three invalid ones."""
    labels = ["x", "x", "y", None, None, None]
    each = [len({label for label in chosen if label}) for chosen in itertools.combinations(labels, 3)]
    assert expected_distinct([2, 1], 6, 3) == pytest.approx(sum(each) / len(each))
    assert expected_distinct([2, 1], 6, 6) == 2


# Measures of a policy.


def test_truth_from_completions_by_hand():
    """The second prompt has one valid completion, too few for an entropy; the third prompt was not answered."""
    questions = [question("p"), question("q", 1, 3, rare=True), question("r")]
    rows, found = truth_of_completions(
        questions, {"p": ["a b", "a b", " d c ", "a c", "no", "a"], "q": ["x"] * 3 + ["d b"]}
    )
    assert [row["id"] for row in rows] == ["p", "q"]
    assert rows[0]["validity"] == pytest.approx(4 / 6) and rows[1]["validity"] == 0.25
    assert rows[0]["entropy"] == entropy_estimate([2, 1, 1]) and rows[1]["entropy"] is None
    assert rows[0]["distinct"] == 3 and rows[1]["distinct"] == 1
    assert found["all"]["without_entropy"] == 1 and found["all"]["prompts"] == 2
    assert found["rare"] is not None and found["rare"]["entropy"] is None and found["rare"]["validity"] == 0.25
    assert found["common"] is not None and found["common"]["entropy"] == rows[0]["entropy"]


def test_truth_from_probabilities_by_hand():
    row = truth_of_probabilities(question("p"), [0.4, 0.2, 0.2, 0.0])
    assert row["validity"] == pytest.approx(0.8)
    assert row["entropy"] == pytest.approx(0.5 * math.log(2) + 2 * 0.25 * math.log(4))
    assert row["distinct"] == pytest.approx((1 - 0.6**16) + 2 * (1 - 0.8**16))


def test_probabilities_and_completions_agree():
    """With 400 prompts of 16 completions the means of validity, entropy and distinct answers differ by chance only."""
    random, p = np.random.default_rng(shifted(0)), np.array([0.3, 0.2, 0.1, 0.1])
    options, shares = [*VALID, "wrong"], [*p, 1 - p.sum()]
    questions = [question(f"p{number}") for number in range(400)]
    drawn = {one.id: random.choice(options, 16, p=shares).tolist() for one in questions}
    sampled = truth_of_completions(questions, drawn)[1]["all"]
    exact = truth_of([truth_of_probabilities(questions[0], p.tolist())])["all"]
    assert sampled["validity"] == pytest.approx(exact["validity"], abs=4 * 0.115 / 20)
    assert sampled["distinct"] == pytest.approx(exact["distinct"], abs=4 * 0.6 / 20)
    assert sampled["entropy"] == pytest.approx(exact["entropy"], abs=0.08)


def test_every_topic_counts_the_same():
    """Topic 0 has two prompts of validity 1, topic 1 one prompt of validity 0: a mean of .5, and one topic covered."""
    rows = [truth_of_probabilities(question(name, topic), p) for name, topic, p in
            [("p", 0, [0.5, 0.5]), ("q", 0, [0.25] * 4), ("r", 1, [0.0, 1e-9])]]  # fmt: skip
    found = truth_of(rows)
    assert found["all"]["validity"] == pytest.approx(0.5) and found["all"]["topics_covered"] == 1
    assert found["all"]["entropy"] == pytest.approx((math.log(2) + math.log(4)) / 2 / 2)
    assert found["all"]["entropy_share"] == pytest.approx((0.5 + 1) / 2 / 2)
    assert found["rare"] is None and found["common"] == found["all"]
    assert [topic["prompts"] for topic in found["by_topic"]] == [2, 1]


def test_truth_rejects_other_prompts_and_empty_ones():
    with pytest.raises(UserError, match=r"^completions of x: the prompts file has no such prompt"):
        truth_of_completions([question("p")], {"x": ["a b"]})
    with pytest.raises(UserError, match=r"^the prompt p has no completion"):
        truth_of_completions([question("p")], {"p": []})
    with pytest.raises(UserError, match=r"^no prompt of the world was answered"):
        truth_of_completions([question("p")], {})


# The prompts file.


def test_topics_below_the_median_size_are_rare(tmp_path):
    """Sizes 1, 2, 2 and 5 of four topics have the median 2, however many prompts a topic has."""
    path = tmp_path / "prompts.jsonl"
    sizes = [5] * 5 + [2] * 4 + [1]
    topics = [0] * 5 + [1, 1, 2, 2] + [3]
    rows = [{"id": f"i{n}", "prompt": f"t {n}", "topic": t, "topic_size": s, "valid": list(VALID)}
            for n, (t, s) in enumerate(zip(topics, sizes, strict=True))]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = read_questions(path)
    assert [one.id for one in found if one.is_rare] == ["i9"]
    assert found[0] == Question("i0", "t 0", 0, 5, False, VALID)


@pytest.mark.parametrize("change", [{"topic": "a"}, {"valid": ["x"]}, {"valid": "x y"}, {"topic_size": None}])
def test_a_prompts_file_of_another_kind_is_rejected(tmp_path, change):
    path = tmp_path / "prompts.jsonl"
    row = {"id": "i", "prompt": "t", "topic": 0, "topic_size": 1, "valid": list(VALID), **change}
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"prompts.jsonl: the prompt i has no readable topic, topic_size, valid; give"):
        read_questions(path)
