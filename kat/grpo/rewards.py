"""Rewards of completions: a reward model, Python functions named in the config, or several with weights."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kat.reward.scoring import score
from latentwire.harness.errors import UserError
from latentwire.harness.training import require_finite_loss

MODEL = "model"  # stands for the reward model among the names of functions

Function = Callable[[list[str], list[str]], Sequence[float]]  # prompts and completions, as texts


@dataclass(frozen=True)
class Sampled:
    """A completion to be rewarded."""

    prompt: str  # as text, without a chat template
    prompt_ids: tuple[int, ...]
    completion: str  # as text, without special tokens
    completion_ids: tuple[int, ...]


class Rewards:
    """Weighted sum of rewards.

    Args:
        names: `model` for the reward model, `module:function` for anything else. Such a function is called with the
            lists of prompts and completions (texts) and returns as many numbers.
        weights: One for each name.
        model: The reward model; needed where it is named.
        end: The token that every completion of its training ended with. A completion that was cut off is scored with
            this token added: the model has learnt to judge nowhere else.
        batch_tokens: Positions that it computes at a time.

    Raises:
        UserError: Names that cannot be imported or are named twice, or another number of weights.
    """

    def __init__(self, names: Sequence[str], weights: Sequence[float], model: Any, end: int, batch_tokens: int) -> None:
        check_names(names, weights)
        self.names, self.weights, self.model, self.end = list(names), list(weights), model, end
        self.batch_tokens = batch_tokens
        self.functions = {name: load_function(name) for name in names if name != MODEL}

    def __call__(self, sampled: Sequence[Sampled], doing: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted rewards, and each kind of reward by its name, (B,) float32 all of them.

        Args:
            sampled: The completions.
            doing: What this is for, for messages: 'step 12'.

        Raises:
            UserError: A function that returns another number of rewards, or what is no number.
            NonFiniteError: A reward that is NaN or infinite.
        """
        found: dict[str, Tensor] = {}
        for name in self.names:
            if name == MODEL:
                sequences = [(row.prompt_ids, self._ended(row.completion_ids)) for row in sampled]
                found[name] = score(self.model, sequences, self.batch_tokens).float().cpu()
            else:
                found[name] = _called(name, self.functions[name], sampled)
            require_finite_loss(f"the reward {name}", found[name], doing)
        total = torch.zeros(len(sampled))
        for name, weight in zip(self.names, self.weights, strict=True):
            total += weight * found[name]
        return total, found

    def _ended(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        return ids if ids and ids[-1] == self.end else (*ids, self.end)


def check_names(names: Sequence[str], weights: Sequence[float]) -> None:
    """Refuse rewards that are none, named twice, or without a weight each.

    Raises:
        UserError: Says which.
    """
    if not names:
        raise UserError("grpo.reward_funcs=[]: nothing to reward; name model, or module:function")
    if len(names) != len(weights):
        raise UserError(
            f"grpo.reward_weights={list(weights)}: {len(weights)} weights for {len(names)} rewards "
            f"({', '.join(names)}); give one for each"
        )
    if twice := next((name for name in names if list(names).count(name) > 1), None):
        raise UserError(f"grpo.reward_funcs: {twice} is named twice; name it once, with another weight")


def load_function(name: str) -> Function:
    """Import a reward function by its name, 'module:function'.

    Raises:
        UserError: Another form of name, no such module or function, or something that cannot be called.
    """
    place = f"grpo.reward_funcs: {name}"
    module, sign, function = name.partition(":")
    if not (sign and module and function):
        raise UserError(f"{place} is no name of a reward; write model, or module:function, such as my_rewards:brevity")
    try:
        found = getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise UserError(
            f"{place}: {module} cannot be imported ({error}); run where Python finds it, or set PYTHONPATH"
        ) from error
    except AttributeError as error:
        raise UserError(f"{place}: {module} has no {function}; check the spelling") from error
    if not callable(found) or inspect.isclass(found):
        raise UserError(f"{place}: is no function; it is called with prompts and completions")
    reward: Function = found
    return reward


def _called(name: str, function: Function, sampled: Sequence[Sampled]) -> Tensor:
    values = function([row.prompt for row in sampled], [row.completion for row in sampled])
    try:
        rewards = torch.tensor([float(value) for value in values])
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the reward {name} returned what is no list of numbers ({error}); mend the function"
        ) from error
    if len(rewards) != len(sampled):
        raise UserError(
            f"the reward {name} returned {len(rewards)} numbers for {len(sampled)} completions; mend the function"
        )
    return rewards
