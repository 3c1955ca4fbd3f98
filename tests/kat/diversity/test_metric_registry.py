"""Metrics that a user registers: what they receive, and what they may return."""

from __future__ import annotations

import numpy as np
import pytest

from kat.diversity.comparison import Samples, across, each, pseudo_values, within
from kat.diversity.metrics import (
    METRICS,
    PromptCompletions,
    Ratio,
    TextSet,
    measure,
    measure_without,
    register_completion_metric,
    register_diversity_metric,
)
from latentwire.harness.errors import UserError
from tests.helpers.random import numbers

ABOUT = {"label": "mine", "higher_is_more_diverse": True, "definition": "made here"}
IDS = [[(1, 2), (3,), (1, 1)], [(2,), (2, 2, 2), ()], [(5, 6), (7,), (7,)], [(1,), (2,), (3, 4)]]


@pytest.fixture(autouse=True)
def no_metrics(monkeypatch) -> None:
    """Begin each test without metrics, and restore them afterwards."""
    monkeypatch.setattr(METRICS, "things", {})


def samples() -> Samples:
    emb = numbers(0).normal(size=(4, 3, 2))
    strings = [[" ".join(map(str, text)) for text in prompt] for prompt in IDS]
    empty = np.array([[not text for text in prompt] for prompt in IDS])
    entropy = [[[0.5] * len(text) for text in prompt] for prompt in IDS]
    return Samples(IDS, strings, emb / np.linalg.norm(emb, axis=-1, keepdims=True), empty, entropy, [[True] * 3] * 4)


def distinct(texts: TextSet) -> float:
    return len(set(texts.strings)) + texts.vocabulary + float(texts.kernel[0, 0]) * len(texts)


def test_a_function_gets_the_set_and_the_set_without_each():
    register_diversity_metric("distinct", **ABOUT)(distinct)
    made = samples()
    assert within(made, 100)["within", "distinct"].tolist() == pytest.approx([106, 106, 105, 106])
    one = made.one_each([0, 1, 2, 3], 1, 100)
    assert (list(one.ids), one.strings) == ([(3,), (2, 2, 2), (7,), (2,)], ["3", "2 2 2", "7", "2"])
    assert measure(one) == {"distinct": pytest.approx(108)}
    rest = one.without(2)
    assert (rest.ids, rest.strings, rest.kernel.shape) == ([(3,), (2, 2, 2), (2,)], ["3", "2 2 2", "2"], (3, 3))
    assert rest.kernel[1, 2] == one.kernel[1, 3]
    assert measure_without(one)["distinct"] == pytest.approx([106] * 4)


def test_a_class_may_have_a_leave_one_out_of_its_own():
    @register_diversity_metric("sizes", **ABOUT)
    class Sizes:
        def value(self, texts):
            return sum(map(len, texts.ids))

        def without(self, texts):
            return [float(10 * i) for i in range(len(texts))]

    made = samples()
    found = across(made, [0, 1, 2, 3], 100)["across", "sizes"]
    sets = [sum(len(IDS[row][number]) for row in range(4)) for number in range(3)]
    left_out = np.array([0.0, 10, 20, 30])
    assert found == pytest.approx(np.mean([pseudo_values(whole, left_out) for whole in sets], axis=0))
    with pytest.raises(UserError, match=r"diversity metric none: .*Nothing has no method value; write def value"):
        register_diversity_metric("none", **ABOUT)(type("Nothing", (), {}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "many", None, [1.0, 2.0]])
def test_values_that_are_no_finite_number_are_refused(value):
    def wrong(texts):
        return value

    register_diversity_metric("wrong", **ABOUT)(wrong)
    one = samples().one_each([0, 1, 2], 0, 100)
    with pytest.raises(UserError, match=r"diversity metric wrong: returned .* instead of one finite number; fix "):
        measure(one)
    with pytest.raises(
        UserError, match=r"instead of 3 finite numbers; fix tests\.kat\.diversity\.test_metric_registry"
    ):
        measure_without(one)


def test_a_metric_that_raises_is_named():
    """Whether it measures sets, sets without each text, or completions."""

    def failing(*_):
        return 1 / 0

    register_diversity_metric("failing", **ABOUT)(failing)
    one = samples().one_each([0, 1, 2], 0, 100)
    message = r"^diversity metric failing: raised ZeroDivisionError \(division by zero\); fix tests\..*\.failing$"
    for compute in (measure, measure_without):
        with pytest.raises(UserError, match=message):
            compute(one)
    METRICS.things.clear()
    register_diversity_metric("failing", **ABOUT)(type("failing", (), {"value": len, "without": failing,
                                                                       "__module__": "tests.mine"}))  # fmt: skip
    with pytest.raises(UserError, match=message):
        measure_without(one)
    METRICS.things.clear()
    register_completion_metric("failing", **ABOUT)(failing)
    with pytest.raises(UserError, match=message):
        each(samples(), [0, 1], matched=False)


def test_a_metric_of_completions_is_a_mean_or_a_ratio():
    @register_completion_metric("longest", **ABOUT, matched=False)
    def longest(prompt: PromptCompletions):
        return max(map(len, prompt.ids))

    @register_completion_metric("per_text", **ABOUT)
    def per_text(prompt: PromptCompletions):
        assert prompt.entropy[0] == [0.5] * len(prompt.ids[0]) and prompt.ended == [True] * 3
        return Ratio(sum(map(len, prompt.ids)), sum(bool(text) for text in prompt.strings))

    found = each(samples(), [0, 1, 3], matched=False)
    assert found["each", "longest"].tolist() == [2, 3, 2]
    assert found["each", "per_text"].mean() == pytest.approx((5 + 4 + 4) / (3 + 2 + 3))
    assert list(each(samples(), [0, 1], matched=True)) == [("each", "per_text")]


def test_a_mixture_of_numbers_and_ratios_is_refused():
    register_completion_metric("mixed", **ABOUT)(lambda prompt: Ratio(1, 1) if prompt.ids[0] == (2,) else 1.0)
    with pytest.raises(UserError, match=r"diversity metric mixed: returned .* instead of 4 finite numbers"):
        each(samples(), range(4), matched=False)


def test_two_metrics_cannot_have_one_name():
    register_diversity_metric("mine", **ABOUT)(distinct)
    with pytest.raises(UserError, match=r"diversity metric mine: .* both register this name; rename one"):
        register_completion_metric("mine", **ABOUT)(lambda prompt: 1.0)
