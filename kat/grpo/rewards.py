"""Rewards of completions: weighted sums of a reward model and of Python functions. Main entry: `Rewards`."""

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
from latentwire.harness.optimization import require_finite_loss

MODEL = "model"  # name of the reward model in grpo.reward_funcs

Function = Callable[[list[str], list[str]], Sequence[float]]  # texts of prompts and completions -> rewards


@dataclass(frozen=True)
class Sampled:
    """A sampled completion with its prompt."""

    prompt: str  # text without a chat template
    prompt_ids: tuple[int, ...]
    completion: str  # text without special tokens
    completion_ids: tuple[int, ...]


class Rewards:
    """Computes weighted sums of rewards.

    Args:
        names: `model` for the reward model, or `module:function`. A function receives the lists of prompts and of
            completions (texts), and returns a list of numbers of the same length.
        reward_weights: One weight for each name.
        model: The reward model; needed if it is named.
        end: Id of the end token. A truncated completion is scored with this token appended, because every completion
            in the reward model's training ended with it.
        batch_tokens: Maximum number of positions that the reward model computes at a time.

    Raises:
        UserError: A name cannot be imported or is given twice, or the number of weights is not the number of names.
    """

    def __init__(
        self, names: Sequence[str], reward_weights: Sequence[float], model: Any, end: int, batch_tokens: int
    ) -> None:
        check_names(names, reward_weights)
        self.names, self.reward_weights, self.model, self.end = list(names), list(reward_weights), model, end
        self.batch_tokens = batch_tokens
        self.functions = {name: load_reward_function(name) for name in names if name != MODEL}

    def __call__(self, sampled: Sequence[Sampled], doing: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted rewards, and each kind of reward by its name, all (B,) float32 on the CPU.

        Args:
            sampled: B completions.
            doing: What the run is doing, for messages, such as 'step 12'.

        Raises:
            UserError: A function does not return one number for each completion.
            NonFiniteError: A reward is NaN or infinite.
        """
        found: dict[str, Tensor] = {}
        for name in self.names:
            if name == MODEL:
                sequences = [(row.prompt_ids, self._ended(row.completion_ids)) for row in sampled]
                found[name] = score(self.model, sequences, self.batch_tokens).float().cpu()
            else:
                found[name] = _call(name, self.functions[name], sampled)
            require_finite_loss(f"the reward {name}", found[name], doing)
        total = torch.zeros(len(sampled))
        for name, weight in zip(self.names, self.reward_weights, strict=True):
            total += weight * found[name]
        return total, found

    def _ended(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        return ids if ids and ids[-1] == self.end else (*ids, self.end)


def check_names(names: Sequence[str], reward_weights: Sequence[float]) -> None:
    """Check that there is at least one reward, that each is named once, and that each has a weight.

    Raises:
        UserError: One of these conditions is not met.
    """
    if not names:
        raise UserError("grpo.reward_funcs=[]: no reward given; name model, or module:function")
    if len(names) != len(reward_weights):
        raise UserError(
            f"grpo.reward_weights={list(reward_weights)}: {len(reward_weights)} weights for {len(names)} rewards "
            f"({', '.join(names)}); give one for each"
        )
    if repeated := next((name for name in names if list(names).count(name) > 1), None):
        raise UserError(f"grpo.reward_funcs: {repeated} is named twice; name it once and change its weight")


def load_reward_function(name: str) -> Function:
    """Import a reward function by its name, 'module:function'.

    Raises:
        UserError: The name has another form, the module or function does not exist, or it is not a function.
    """
    setting = f"grpo.reward_funcs: {name}"
    module, sign, function = name.partition(":")
    if not (sign and module and function):
        raise UserError(
            f"{setting}: not the name of a reward; write model, or module:function, such as my_rewards:brevity"
        )
    try:
        found = getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise UserError(
            f"{setting}: {module} cannot be imported ({error}); run in the folder that has it, or set PYTHONPATH"
        ) from error
    except AttributeError as error:
        raise UserError(f"{setting}: {module} has no {function}; check the spelling") from error
    if not callable(found) or inspect.isclass(found):
        raise UserError(f"{setting}: not a function; name one that takes prompts and completions")
    reward: Function = found
    return reward


def _call(name: str, function: Function, sampled: Sequence[Sampled]) -> Tensor:
    values = function([row.prompt for row in sampled], [row.completion for row in sampled])
    try:
        rewards = torch.tensor([float(value) for value in values])
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the reward {name} must return a list of numbers, got an error ({error}); fix the function"
        ) from error
    if len(rewards) != len(sampled):
        raise UserError(
            f"the reward {name} returned {len(rewards)} numbers for {len(sampled)} completions; fix the function"
        )
    return rewards
