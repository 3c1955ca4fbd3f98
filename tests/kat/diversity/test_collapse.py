"""Arms compared prompt by prompt: matched lengths, values of a prompt, intervals, groups."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from kat.diversity.comparison import (
    LEVELS,
    Samples,
    across,
    common_lengths,
    compare_arms,
    cut,
    each,
    groups_by_density,
    pseudo_values,
    rate,
    within,
)
from kat.diversity.kernel import cosines
from kat.diversity.metrics import TextSet, measure, metric_records
from latentwire.harness.errors import UserError
from tests.helpers.random import numbers

VOCABULARY = 50
PROMPTS, COMPLETIONS = 12, 3


def samples(seed: int, tokens: int = 20) -> Samples:
    """Return random completions from a vocabulary with this number of tokens."""
    draws = numbers(seed)
    ids = [
        [tuple(int(token) for token in draws.integers(0, tokens, draws.integers(0, 9))) for _ in range(COMPLETIONS)]
        for _ in range(PROMPTS)
    ]
    emb = draws.normal(size=(PROMPTS, COMPLETIONS, 5))
    strings = [[" ".join(map(str, row)) for row in rows] for rows in ids]
    return Samples(
        ids,
        strings,
        emb / np.linalg.norm(emb, axis=-1, keepdims=True),
        np.array([[not text for text in texts] for texts in strings]),
        [[draws.random(len(row) + 1).tolist() for row in rows] for rows in ids],
        [[bool(draws.random() < 0.5) for _ in rows] for rows in ids],
    )


def test_matched_lengths_are_the_shortest_over_the_arms():
    """Each completion of each prompt has its own matched length."""
    first = [[(1, 2, 3), (4,)], [(5, 6), ()]]
    second = [[(7, 8), (9, 9, 9)], [(1, 2, 3), (4,)]]
    third = [[(1, 2, 3, 4), (4, 4)], [(5,), (5, 5)]]
    lengths = common_lengths([first, second, third])
    assert lengths == [[2, 1], [1, 0]]
    assert cut(second, lengths) == [[(7, 8), (9,)], [(1,), ()]]


def test_within_is_the_diversity_of_each_prompts_completions():
    made = samples(0)
    found = within(made, VOCABULARY)
    kernel = cosines(made.emb[4], made.empty[4])
    for name, value in measure(TextSet(made.ids[4], made.strings[4], kernel, VOCABULARY)).items():
        assert found["within", name].shape == (PROMPTS,)
        assert found["within", name][4] == value


def test_across_has_the_mean_of_the_sets_of_one_completion_each():
    made, group = samples(1), [0, 2, 3, 5, 9]
    found = across(made, group, VOCABULARY)
    sets = [
        measure(
            TextSet(
                [made.ids[row][number] for row in group],
                [made.strings[row][number] for row in group],
                cosines(made.emb[group, number], made.empty[group, number]),
                VOCABULARY,
            )
        )
        for number in range(COMPLETIONS)
    ]
    for (level, name), values in found.items():
        assert level == "across" and values.shape == (5,)
        assert values.mean() == pytest.approx(np.mean([one[name] for one in sets]))


def test_the_pseudo_values_of_a_mean_are_the_values():
    values = np.array([1.0, 4.0, 2.0, 9.0])
    left_out = (values.sum() - values) / 3
    assert pseudo_values(values.mean(), left_out) == pytest.approx(values)


@pytest.mark.statistical
def test_pseudo_values_of_a_ratio_have_its_standard_error():
    draws = numbers(0)

    def ratio_and_error(n):
        sizes = draws.uniform(1, 3, n)
        counts = 0.5 * sizes + draws.normal(0, 0.3, n)
        values = rate(counts.tolist(), sizes.tolist())
        assert values.mean() == pytest.approx(counts.sum() / sizes.sum())
        return values.mean(), values.std(ddof=1) / n**0.5

    found = np.array([ratio_and_error(60) for _ in range(400)])
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std(), rel=0.16)  # four standard errors of the spread


def test_a_rate_over_no_tokens_is_0():
    assert rate([0, 0, 0], [0, 0, 0]).tolist() == [0, 0, 0]
    assert rate([2, 0, 0], [1, 0, 0]).mean() == pytest.approx(2)


@pytest.mark.statistical
def test_the_error_across_prompts_matches_fresh_samples():
    """Standard errors are 0.7 to 2 times the standard deviation over 60 drawn sets."""
    draws = numbers(0)

    def of_new_prompts():
        ids = [[tuple(int(t) for t in draws.integers(0, 40, 6) * (draws.random() < 0.7))] for _ in range(30)]
        emb = draws.normal(size=(30, 1, 4)) + 0.5
        emb /= np.linalg.norm(emb, axis=-1, keepdims=True)
        made = Samples(ids, [[str(row[0])] for row in ids], emb, np.zeros((30, 1), bool), [[[]]] * 30, [[True]] * 30)
        return across(made, range(30), VOCABULARY)

    sets = [of_new_prompts() for _ in range(60)]
    for key in sets[0]:
        errors = np.mean([found[key].std(ddof=1) / 30**0.5 for found in sets])
        assert 0.7 < errors / np.std([found[key].mean() for found in sets], ddof=1) < 2, key  # never much too narrow


def test_each_completion_by_hand():
    made = Samples(
        ids=[[(1, 2), (3,)], [(4, 5, 6), ()]],
        strings=[["a b c d", "e — f"], ["not just g but h", ""]],
        emb=np.zeros((2, 2, 1)),
        empty=np.zeros((2, 2), bool),
        entropy=[[[1.0, 2.0], [3.0]], [[4.0, 4.0, 4.0, 4.0], []]],
        ended=[[True, False], [True, True]],
    )
    found = each(made, [0, 1], matched=False)
    assert found["each", "length"].tolist() == [1.5, 1.5]
    assert found["each", "ended"].tolist() == [0.5, 1]
    assert found["each", "policy_entropy"].mean() == pytest.approx(22 / 7)  # of tokens, not of prompts
    assert found["each", "em_dashes"].mean() == pytest.approx(1000 / 11)
    assert found["each", "not_just_but"].mean() == pytest.approx(1000 / 11)
    matched = each(made, [1], matched=True)
    assert ("each", "length") not in matched and ("each", "ended") not in matched
    assert matched["each", "policy_entropy"].mean() == pytest.approx(4)
    assert each(made, [0], matched=True)["each", "not_just_but"].mean() == 0


@pytest.mark.statistical
def test_a_comparison_is_paired_and_gives_second_minus_first():
    draws = numbers(0)
    base = draws.normal(0, 5, 40)
    key, other = ("within", "vendi"), ("within", "ead")
    row, none = compare_arms({key: base, other: base}, {key: base + 1 + draws.normal(0, 0.1, 40), other: base}, seed=0)
    assert (row["level"], row["metric"]) == key
    assert row["difference"] == pytest.approx(1, abs=0.1)
    assert row["interval"][1] - row["interval"][0] < 0.1 < row["first"]["interval"][1] - row["first"]["interval"][0]
    assert row["second"]["value"] - row["first"]["value"] == pytest.approx(row["difference"])
    assert row["p_holm"] == row["p_value"] < 0.001  # a metric without a change does not enter the family
    assert none["difference"] == 0 and none["interval"] == [0, 0] and none["p_holm"] == 1


@pytest.mark.statistical
def test_an_interval_uses_the_std_with_n_minus_1():
    values = numbers(0).normal(size=20)
    (row,) = compare_arms({("each", "ended"): np.zeros(20)}, {("each", "ended"): values}, seed=0)
    width = row["interval"][1] - row["interval"][0]
    assert width == pytest.approx(2 * stats.t.ppf(0.975, 19) * values.std(ddof=1) / 20**0.5, rel=0.06)
    far = {("each", "ended"): values + 5}  # a value far from 0 is known as well as a difference
    low, high = compare_arms(far, far, seed=0)[0]["first"]["interval"]
    assert high - low == pytest.approx(width, rel=0.1) and low < 5 + values.mean() < high


@pytest.mark.statistical
def test_equal_arms_are_rarely_called_different():
    draws = numbers(0)
    keys = [("within", str(number)) for number in range(300)]
    first, second = ({key: draws.exponential(size=40) for key in keys} for _ in range(2))
    rows = compare_arms(first, second, seed=1)
    assert 0.01 < np.mean([row["p_value"] < 0.05 for row in rows]) < 0.12  # 300 comparisons: .05 or a little more
    assert sum(row["p_holm"] < 0.05 for row in rows) <= 1


def test_groups_by_density_are_thirds_of_all_prompts():
    ids = [f"p{i}" for i in range(100)]
    density = torch.arange(100, dtype=torch.float64)
    asked = ["p99", "p0", "unknown", "p50", "p10", "p80"]
    groups, about = groups_by_density(asked, ids, density, 0.3, 0.2)
    assert groups == {"rare": [1, 4], "common": [0, 5]}
    assert about == {"rare_at_most": pytest.approx(29.7), "common_at_least": pytest.approx(79.2), "without_density": 1}


@pytest.mark.parametrize("shares", [(0, 0.3), (0.3, 1), (0.6, 0.5), (float("nan"), 0.2)])
def test_shares_out_of_range_are_refused(shares):
    with pytest.raises(UserError, match="rare_share="):
        groups_by_density(["a"], ["a"], torch.ones(1), *shares)


def test_every_metric_has_its_definition():
    made = samples(2)
    found = {
        **within(made, VOCABULARY),
        **across(made, range(PROMPTS), VOCABULARY),
        **each(made, range(PROMPTS), False),
    }
    records = metric_records()
    assert {name for _, name in found} == records.keys() and {level for level, _ in found} == LEVELS.keys()
    assert all(one["definition"] and one["label"] and one["source"] is None for one in records.values())
    directions = {name: one["higher_is_more_diverse"] for name, one in records.items()}
    assert directions == {
        "ead": True, "self_bleu": False, "embedding_distance": True, "vendi": True, "compression_ratio": False,
        "token_entropy": True, "length": None, "ended": None, "policy_entropy": True, "em_dashes": None,
        "not_just_but": None,
    }  # fmt: skip
