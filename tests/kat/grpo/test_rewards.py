"""Rewards: functions by name, their weights, and refused names and values."""

from __future__ import annotations

import math

import pytest
import torch

from kat.grpo import rewards as module
from kat.grpo.rewards import Rewards, Sampled, load_reward_function
from latentwire.harness.errors import UserError
from latentwire.harness.optimization import NonFiniteError

SAMPLED = [Sampled("q", (1, 2), "ab", (3,)), Sampled("r", (4,), "abcd", (5, 6))]


def length(prompts, completions):
    return [float(len(text)) for text in completions]


def prompt_is_q(prompts, completions):
    return [float(prompt == "q") for prompt in prompts]


def nothing(prompts, completions):
    return []


def words(prompts, completions):
    return ["many" for _ in prompts]


def nan(prompts, completions):
    return [1.0, math.nan]


NOT_CALLABLE = 3


class Judge:
    pass


HERE = __name__


def test_rewards_are_summed_by_weight_and_kept_by_name():
    both = Rewards([f"{HERE}:length", f"{HERE}:prompt_is_q"], [0.5, -2.0], None, 9, 100)
    total, by_name = both(SAMPLED, "a test")
    assert total.tolist() == [1.0 - 2.0, 2.0]
    assert {name: values.tolist() for name, values in by_name.items()} == {
        f"{HERE}:length": [2.0, 4.0],
        f"{HERE}:prompt_is_q": [1.0, 0.0],
    }


def test_the_reward_model_is_given_tokens(monkeypatch):
    def score(model, sequences, batch_tokens):
        assert (model, batch_tokens) == ("the model", 77)
        return torch.tensor([float(sum(prompt) + 10 * sum(completion)) for prompt, completion in sequences])

    monkeypatch.setattr(module, "score", score)
    ended = [SAMPLED[0], Sampled("r", (4,), "abcd", (5, 6, 9))]  # the first was cut off: an end is added
    total, by_name = Rewards(["model", f"{HERE}:prompt_is_q"], [1.0, 100.0], "the model", 9, 77)(ended, "a test")
    assert total.tolist() == [223.0, 204.0]
    assert by_name["model"].tolist() == [123.0, 204.0]


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        ([], [], "no reward given"),
        (["model"], [1.0, 2.0], r"reward_weights=\[1\.0, 2\.0\]: 2 weights for 1 rewards"),
        (["model", "model"], [1.0, 1.0], "model is named twice"),
        (["brevity"], [1.0], "brevity: not the name of a reward"),
        ([":f"], [1.0], "not the name of a reward"),
        (["nowhere.at_all:f"], [1.0], "nowhere.at_all cannot be imported"),
        ([f"{HERE}:absent"], [1.0], "has no absent"),
        ([f"{HERE}:NOT_CALLABLE"], [1.0], "not a function"),
        ([f"{HERE}:Judge"], [1.0], "not a function"),
    ],
)
def test_invalid_reward_names_are_refused(names, weights, message):
    with pytest.raises(UserError, match=message):
        Rewards(names, weights, None, 9, 100)


def test_a_function_is_found_by_its_name():
    assert load_reward_function("math:sqrt") is math.sqrt


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nothing", UserError, "returned 0 numbers for 2 completions"),
        ("words", UserError, "must return a list of numbers, got an error"),
        ("nan", NonFiniteError, "the reward .*nan is nan at a test"),
    ],
)
def test_invalid_return_values_are_refused(name, error, message):
    with pytest.raises(error, match=message):
        Rewards([f"{HERE}:{name}"], [1.0], None, 9, 100)(SAMPLED, "a test")
