"""Measures of completions: classes, distinct-k and utility-k, coverage, groups, and metrics over words."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kat.collapse.answers import distinct, estimate_bias, utility
from kat.collapse.measures import (
    ENTROPY,
    QUALITY,
    AnswerRules,
    PromptAnswers,
    PromptFacts,
    covered_topics,
    prompt_groups,
    text_values,
    word_sets,
)
from kat.collapse.values import RunRows, equal_completions, mean_of_known, measure_run
from latentwire.harness.errors import UserError
from tests.helpers.collapse_runs import values_of

RULES = AnswerRules(good_from=0.5, same_from=0.6)
VALID = frozenset({"word a", "word b", "word c"})


def facts(name: str = "p", topic: int | None = 0, size: int = 1, valid: frozenset[str] | None = VALID) -> PromptFacts:
    return PromptFacts(name, f"prompt {name}", topic, size, valid, None)


def completions(*texts: str, reward: float = 0.0) -> list[dict]:
    return [{"text": text, "tokens": 2, "ended": True, "reward": reward, "kl": 0.5} for text in texts]


def test_distinct_and_utility_follow_noveltybench():
    assert distinct([0, 1, 0, 2]) == 3 and distinct([0, 1, 0, 2], [True, False, True, True]) == 2
    # weights 1, .8, .64, .512; the third generation repeats the first one
    expected = (1 * 0.9 + 0.8 * 0.5 + 0.512 * 1.0) / (1 + 0.8 + 0.64 + 0.512)
    assert utility([7, 8, 7, 9], [0.9, 0.5, 0.9, 1.0]) == pytest.approx(expected)
    assert utility([1, 2], [1, 1]) == pytest.approx(1) and utility([1, 1], [0, 0]) == 0


def test_valid_answers_of_a_prompt_are_measured():
    given = completions("word a", " word  b", "word a", "other", "word a", "word b", reward=3.0)
    found = PromptAnswers(given, facts(), RULES).measured()
    assert found[QUALITY] == pytest.approx(5 / 6) and found["reward"] == pytest.approx(3)
    assert (found["distinct_valid"], found["distinct_k"], found["distinct_k_good"]) == (2, 3, 2)
    assert found["kl"] == 0.5 and found["length"] == 2 and found["ended"] == 1
    plug_in = -(0.6 * math.log(0.6) + 0.4 * math.log(0.4))
    assert plug_in < found[ENTROPY] < math.log(3)  # the estimate adds what was not seen
    assert math.isnan(PromptAnswers(completions("word a", "no"), facts(), RULES).measured()[ENTROPY])


def test_quality_without_valid_answers_is_f1_or_reward():
    row = PromptFacts("p", "?", None, 0, None, ("the Rhine", "river Rhine"))
    assert PromptAnswers(completions("a river", "rhine"), row, RULES).quality == pytest.approx([2 / 3, 1.0])
    row = PromptFacts("p", "?", None, 0, None, None)
    answers = PromptAnswers(completions("a", "b", reward=0.25), row, RULES)
    assert answers.quality == [0.25, 0.25] and answers.good == [False, False]
    assert ENTROPY not in answers.measured()


def test_topics_and_their_answers_are_covered():
    prompts = [
        PromptAnswers(completions("word a", "word b"), facts("p", 0), RULES),
        PromptAnswers(completions("word a", "word a"), facts("q", 0), RULES),
        PromptAnswers(completions("no", "no"), facts("r", 1), RULES),
    ]
    found = covered_topics(prompts)
    assert found == pytest.approx({"topics_covered": 1 / 2, "answers_covered": (2 / 3 + 0) / 2})


def test_topics_below_the_median_size_are_rare():
    rows = [facts("a", 0, 9), facts("b", 1, 5), facts("c", 2, 5), facts("d", 3, 1), facts("e", 0, 9)]
    assert prompt_groups(rows) == {"all": [0, 1, 2, 3, 4], "rare": [3], "common": [0, 1, 2, 4]}
    assert prompt_groups([facts("a", None)]) == {"all": [0]}


def test_words_are_tokens_of_the_diversity_metrics():
    (within, _), across = word_sets([["a b", "a b", ""], ["c", "a", "c d"]])
    assert within.ids == [[0, 1], [0, 1], []] and within.vocabulary == 4
    assert within.kernel == pytest.approx(np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]]))
    assert [one.strings for one in across] == [["a b", "c"], ["a b", "a"], ["", "c d"]]
    each, sets = text_values([["a b", "a b"], ["c", "d"]])
    assert each["within/vendi"] == pytest.approx([1, 2]) and sets["across/vendi"] == pytest.approx(2)


def test_the_bias_of_an_estimate_falls_with_its_draws():
    few, many = estimate_bias(16, 4), estimate_bias(16, 64)
    assert few < -0.2 and abs(many) < 0.05


def test_unknown_values_are_left_out_of_means():
    values = np.array([[1.0, np.nan, 3.0], [np.nan, np.nan, np.nan]])
    assert mean_of_known(values) == pytest.approx([2, math.nan], nan_ok=True)


KNOWN = {"p": facts("p"), "q": facts("q")}


def rows_of(*steps: int, count: int = 3) -> RunRows:
    given = [{"step": step, "id": name, "prompt": "?", "completions": completions(*["word a"] * count)}
             for step in steps for name in "pq"]  # fmt: skip
    return RunRows(given, [{"id": "p", "intended": 1.0, "drawn": 4}])


def test_truth_replaces_the_estimates():
    rows = rows_of(0, 5)
    truth = {(step, name): {"step": step, "id": name, "validity": 0.4, "entropy": 1.5 - step / 10, "distinct": 2.5}
             for step in (0, 5) for name in "pq"}  # fmt: skip
    run = measure_run("uniform", 0, RunRows(rows.completions, rows.ledger, truth), KNOWN, RULES)
    assert run.exact and run.curve(ENTROPY, "all") == pytest.approx([1.5, 1.0])
    assert run.curve(QUALITY, "all") == pytest.approx([0.4, 0.4])
    assert run.curve("distinct_valid", "all") == pytest.approx([2.5, 2.5])
    assert run.exposure == {0: 1.0} and run.by_topic(ENTROPY, -1) == {0: 1.0}
    del truth[5, "p"]
    with pytest.raises(UserError, match=r"truth\.jsonl without the prompt p after step 5"):
        measure_run("uniform", 0, RunRows(rows.completions, rows.ledger, truth), KNOWN, RULES)


@pytest.mark.parametrize(
    ("rows", "known", "message"),
    [
        (rows_of(0), KNOWN, "has 1 evaluations of held-out prompts"),
        (rows_of(5, 0), KNOWN, "not in the order of their steps"),
        (rows_of(0, 5, count=1), KNOWN, "prompts with a single completion"),
        (
            rows_of(0, 0, 5),
            KNOWN,
            "has other prompts or numbers of completions after step 5 than after step 0",
        ),
        (rows_of(0, 5), {}, "completions of the prompt p, which the prompts file lacks"),
    ],
)
def test_unusable_completions_are_refused(rows, known, message):
    with pytest.raises(UserError, match=message):
        measure_run("uniform", 0, rows, known, RULES)


def test_equal_completions_are_counted_by_probability():
    one, other = values_of("uniform", 0, 1.0), values_of("uniform", 1, 1.0)
    assert equal_completions(one, other) == 1
    other.shown[1][0] = [{"text": "a", "count": 1, "good": True}, {"text": "b", "count": 3, "good": True}]
    assert equal_completions(one, other) == pytest.approx((1 / 4 + 1 + 1) / 3)
