"""Combined rewards of completions, from a reward model and from functions. Main entry: `Rewards`."""

from __future__ import annotations

import asyncio
import math
import threading
import traceback
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kat.grpo.reward_calls import RewardCall, Sampled, calls_of
from kat.grpo.rewards import MODEL, Scores
from kat.reward.scoring import score
from latentwire.harness.errors import UserError
from latentwire.harness.memory import is_out_of_memory
from latentwire.harness.optimization import NonFiniteError, require_finite_loss

T = TypeVar("T")
SHOWN = 200  # characters of a prompt or completion in a message


class Rewards:
    """Computes weighted sums of rewards, times the rewards that multiply, each to the power of its weight.

    Args:
        names: `model` for the reward model, a registered reward, or `module:function`.
        reward_weights: One weight for each name.
        model: The reward model; needed if it is named.
        end: Id of the end token of the reward model's training. The reward model scores every completion with this
            token at its end, also a truncated one.
        batch_tokens: Maximum number of positions that the reward model computes at a time.
        settings: Settings of the functions by their names.
        ends: Ids of all end tokens of the policy. `end` replaces another one at the end of a completion.

    Raises:
        UserError: A name cannot be imported or is given twice, the number of weights is not the number of names, a
            setting cannot be used, or a reward that multiplies has nothing to multiply.
    """

    def __init__(
        self,
        names: Sequence[str],
        reward_weights: Sequence[float],
        model: PreTrainedModel | None,
        end: int,
        batch_tokens: int,
        settings: Mapping[str, Mapping[str, object]] | None = None,
        ends: frozenset[int] = frozenset(),
    ) -> None:
        check_names(names, reward_weights)
        self.names, self.reward_weights, self.model, self.end = list(names), list(reward_weights), model, end
        self.batch_tokens, self.ends = batch_tokens, ends | {end}
        self.calls = calls_of(names, settings)
        self.factors = factors_of(self.calls, names, reward_weights)

    def __call__(self, sampled: Sequence[Sampled], doing: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the combined rewards, and each kind of reward by its name, all (B,) float32 on the CPU.

        A function may return None for a completion, which is NaN here: the other rewards alone make up the sum.

        Args:
            sampled: B completions.
            doing: What the run is doing, for messages, such as 'step 12'.

        Raises:
            UserError: A function raises an exception or does not return one number for each completion, no reward
                scores a completion, or a reward below 0 would be multiplied.
            NonFiniteError: A reward is NaN or infinite.
        """
        running = {name: self._start(call, sampled, doing) for name, call in self.calls.items()}
        found: dict[str, Tensor] = {}
        for name in self.names:
            if name == MODEL:
                sequences = [(row.prompt_ids, self._ended(row.completion_ids)) for row in sampled]
                assert self.model is not None
                found[name] = score(self.model, sequences, self.batch_tokens).float().cpu()
                require_finite_loss(f"the reward {name}", found[name], doing)
            else:
                scores = self._finish(self.calls[name], running[name], sampled, doing)
                found[name] = _numbers(name, scores, sampled, doing)
        return self._combined(found, sampled, doing), found

    def _combined(self, found: Mapping[str, Tensor], sampled: Sequence[Sampled], doing: str) -> Tensor:
        """Return the weighted sum of the rewards that add up, times those that multiply, (B,)."""
        weights = dict(zip(self.names, self.reward_weights, strict=True))
        added = [name for name in self.names if name not in self.factors]
        total = torch.zeros(len(sampled))
        for name in added:
            total += weights[name] * found[name].nan_to_num(0.0)
        unscored = torch.stack([found[name] for name in added]).isnan().all(dim=0)
        if unscored.any():
            row = sampled[int(unscored.nonzero()[0])]
            raise UserError(
                f"no reward scores a completion of {doing}: {', '.join(added)} return None for {_described(row)}; "
                "remove this prompt, give it reference answers, or add a reward that scores every completion"
            )
        for name in self.factors:
            factor = found[name].nan_to_num(1.0)
            _require_factors(name, total, factor, sampled, doing)
            total = total * factor ** weights[name]
        return total

    def _ended(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        return (*(ids[:-1] if ids and ids[-1] in self.ends else ids), self.end)

    @cached_property
    def _loop(self) -> EventLoop:
        return EventLoop()

    def _start(self, call: RewardCall, sampled: Sequence[Sampled], doing: str) -> Scores | Future[Scores]:
        """Call a function. An async function runs on while other rewards are computed."""
        try:
            returned = call(sampled)
        except Exception as error:  # the function is the user's, so any error in it is the user's to fix
            raise self._explained(call, sampled, doing, error) from error
        return self._loop.submit(returned) if isinstance(returned, Awaitable) else returned

    def _finish(
        self, call: RewardCall, returned: Scores | Future[Scores], sampled: Sequence[Sampled], doing: str
    ) -> Scores:
        """Return what a function returned; wait for an async one."""
        if not isinstance(returned, Future):
            return returned
        try:
            return returned.result()
        except Exception as error:  # as in `_start`
            raise self._explained(call, sampled, doing, error) from error

    def _explained(self, call: RewardCall, sampled: Sequence[Sampled], doing: str, error: Exception) -> UserError:
        """Return the message for an exception in a function. It names the first row that fails alone.

        Raises:
            Exception: The exception itself, if it has a message for the user or if memory ran out.
        """
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise error
        which = f"all {len(sampled)} completions together, but for none of them alone"
        for row in sampled:
            try:
                returned = call([row])
                if isinstance(returned, Awaitable):
                    self._loop.submit(returned).result()
            except Exception as alone:  # the row that is looked for
                error, which = alone, _described(row)
                break
        return UserError(
            f"the reward {call.name} raises {type(error).__name__} ({error}){_line_of(error)} at {doing}, for {which}; "
            f"fix {call.definition}, or the data that it gets. The run has stopped and its last checkpoint is kept"
        )


class EventLoop:
    """An event loop in a thread of its own. It runs on between the steps, so functions may keep connections open."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True, name="async rewards").start()

    def submit(self, awaitable: Awaitable[T]) -> Future[T]:
        """Start to await an object, and return its future result."""

        async def run() -> T:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(run(), self.loop)


def check_names(names: Sequence[str], reward_weights: Sequence[float]) -> None:
    """Check that there is at least one reward, that each is named once, and that each has a weight.

    Raises:
        UserError: One of these conditions is not met.
    """
    if not names:
        raise UserError("grpo.reward_funcs=[]: no reward given; name model, exact_match or module:function")
    if len(names) != len(reward_weights):
        raise UserError(
            f"grpo.reward_weights={list(reward_weights)}: {len(reward_weights)} weights for {len(names)} rewards "
            f"({', '.join(names)}); give one for each"
        )
    if repeated := next((name for name in names if list(names).count(name) > 1), None):
        raise UserError(f"grpo.reward_funcs: {repeated} is named twice; name it once and change its weight")


def factors_of(calls: Mapping[str, RewardCall], names: Sequence[str], reward_weights: Sequence[float]) -> list[str]:
    """Return the names of the rewards that multiply the sum of the others.

    Args:
        calls: The reward functions by their names.
        names: Names of all rewards.
        reward_weights: Their weights.

    Raises:
        UserError: All rewards multiply, or the weight of one that multiplies is negative.
    """
    factors = [name for name, call in calls.items() if call.reward.multiplies]
    if len(factors) == len(names):
        raise UserError(
            f"grpo.reward_funcs=[{','.join(names)}]: {names[0]} multiplies the sum of the other rewards, and none is "
            "given; add one that measures quality, such as exact_match"
        )
    for name, weight in zip(names, reward_weights, strict=True):
        if name in factors and weight < 0:
            raise UserError(
                f"grpo.reward_weights={list(reward_weights)}: the weight of {name} is the power of a factor, so it "
                "must be at least 0; 1 multiplies by the reward itself"
            )
    return factors


def _require_factors(name: str, total: Tensor, factor: Tensor, sampled: Sequence[Sampled], doing: str) -> None:
    """Check that a reward and the sum that it multiplies are at least 0, (B,) each."""
    for what, values in (("the sum of the other rewards", total), ("it", factor)):
        if not (values < 0).any():
            continue
        place = int((values < 0).nonzero()[0])
        raise UserError(
            f"grpo.reward_funcs: {name} multiplies the other rewards, and {what} is {float(values[place]):g} at "
            f"{doing}, for {_described(sampled[place])}: a product with a number below 0 would reward the opposite; "
            f"give rewards of at least 0, or leave {name} out"
        )


def _numbers(name: str, returned: Iterable[float | None], sampled: Sequence[Sampled], doing: str) -> Tensor:
    """Return what a function returned as numbers, (B,) float32; None becomes NaN."""
    try:
        values = [None if value is None else float(value) for value in returned]
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the reward {name} must return a list of numbers, got an error ({error}); fix the function"
        ) from error
    if len(values) != len(sampled):
        raise UserError(
            f"the reward {name} returned {len(values)} numbers for {len(sampled)} completions; fix the function"
        )
    for value, row in zip(values, sampled, strict=True):
        if value is not None and not math.isfinite(value):
            raise NonFiniteError(
                f"the reward {name} is {value} at {doing}, for {_described(row)}: the run has stopped and its last "
                "checkpoint is kept; fix the function, which may return None for a completion that it cannot score"
            )
    return torch.tensor([math.nan if value is None else value for value in values])


def _described(row: Sampled) -> str:
    """Return a completion and its prompt in words, for messages."""
    name = f" {row.columns['id']}" if "id" in row.columns else ""
    return f"the prompt{name} {_shortened(row.prompt)} and the completion {_shortened(row.completion)}"


def _shortened(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")


def _line_of(error: Exception) -> str:
    """Return the file and line where an exception was raised: ' in my_rewards.py, line 7'."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
