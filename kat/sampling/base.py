"""What every arm is: a way of drawing training prompts, by name. Main entries: `Arm`, `register_arm()`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from kat.sampling.draws import checked_weights
from latentwire.harness.checkpoint import State
from latentwire.harness.errors import UserError
from latentwire.harness.registry import Registry, defaults_of
from latentwire.harness.results import JsonObject

A = TypeVar("A", bound="Arm")

# What an arm may need: the weights and the groups of near-duplicates of task=density, and the column `topic` of the
# prompts file.
DENSITY, GROUPS, TOPICS = "density", "groups", "topics"


@dataclass(frozen=True)
class Observation:
    """What a step found out about a prompt that it drew.

    Attributes:
        row: Row of the prompt among the training prompts.
        rewards: For task=grpo the reward of each completion. For task=reward one number: the share of the prompt's
            pairs that the model puts in the right order.

    Raises:
        UserError: Rewards are missing, or a reward is not finite.
    """

    row: int
    rewards: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.rewards or not all(map(math.isfinite, self.rewards)):
            raise UserError(f"rewards {self.rewards} of row {self.row}: must be finite numbers, at least one")


@dataclass(frozen=True)
class ArmInputs:
    """What an arm is built from.

    Attributes:
        ids: Ids of the N training prompts; row i is ids[i].
        seed: Seed of the draws.
        measured: Weights of task=density by prompt id. Arms without needs=("density",) ignore them.
        too_long: Ids of prompts that have no weight because they were too long for the embedder.
        prompts_per_step: Number of draws of a step.
        setting: Name of the setting with that number, for messages.
        groups: Group of near-duplicates by prompt id. Only arms with needs=("groups",) use it.
        topics: Topic by prompt id. Only arms with needs=("topics",) use it.
    """

    ids: Sequence[str]
    seed: int
    measured: Mapping[str, float]
    too_long: Sequence[str] = ()
    prompts_per_step: int = 1
    setting: str = "prompts_per_step"
    groups: Mapping[str, int] = field(default_factory=dict)
    topics: Mapping[str, int] = field(default_factory=dict)

    @property
    def num_prompts(self) -> int:
        """The number of prompts, N."""
        return len(self.ids)

    def drawable(self, arm: type[Arm]) -> tuple[Tensor, Tensor]:
        """Return the rows that an arm can draw, (M,) int64, and their base weights, (M,) float64.

        Raises:
            UserError: A prompt lacks what the arm needs, or none can be drawn.
        """
        ids = self.ids
        if not arm.needs:
            return torch.arange(len(ids)), torch.full((len(ids),), 1 / max(len(ids), 1), dtype=torch.float64)
        if TOPICS in arm.needs:
            return self._even_over_topics(arm)
        left_out, by_group = set(self.too_long), DENSITY not in arm.needs
        known: Mapping[str, float] = self.groups if by_group else self.measured
        if unknown := [name for name in ids if name not in known and name not in left_out]:
            lacks = "group of near-duplicates" if by_group else "weight"
            raise UserError(
                f"sampler={arm.name}: {len(unknown)} of {len(ids)} prompts have pairs but no {lacks}, {unknown[0]} for "
                "instance; run task=prompts, task=embed and task=density again on these pairs"
            )
        rows = [row for row, name in enumerate(ids) if name in known]
        if not rows:
            raise UserError(
                f"sampler={arm.name}: all {len(ids)} training prompts were too long for the embedder, so none can be "
                "drawn; use an embedder with a longer context, or sampler=uniform"
            )
        values = [known[ids[row]] for row in rows]
        return torch.tensor(rows), checked_weights(_even(values) if by_group else values)

    def _even_over_topics(self, arm: type[Arm]) -> tuple[Tensor, Tensor]:
        """Return all rows, and base weights that are equal for every topic.

        Raises:
            UserError: A prompt has no topic.
        """
        if unknown := [name for name in self.ids if name not in self.topics]:
            raise UserError(
                f"sampler={arm.name}: {len(unknown)} of {len(self.ids)} prompts have no whole number in the column "
                f"topic of the prompts file, {unknown[0]} for instance; give the prompts file of task=world, or add it"
            )
        return torch.arange(len(self.ids)), checked_weights(_even([self.topics[name] for name in self.ids]))


def _even(groups: Sequence[float]) -> list[float]:
    """Return weights that give every group the same sum and its members the same weight."""
    sizes = Counter(groups)
    return [1 / sizes[group] for group in groups]


@dataclass(frozen=True)
class RowInputs:
    """What an arm of fixed weights is built from if its prompts are too many for ids and dicts in memory.

    Attributes:
        weights: The weights of task=density of all N prompts, (N,) float64.
        seed: Seed of the draws.
        groups: Their groups of near-duplicates, (N,) int64; None for arms without needs=("groups",).
        prompts_per_step: Number of draws of a step.
        setting: Name of the setting with that number, for messages.
    """

    weights: Tensor
    seed: int
    groups: Tensor | None = None
    prompts_per_step: int = 1
    setting: str = "prompts_per_step"

    @property
    def num_prompts(self) -> int:
        """The number of prompts, N."""
        return len(self.weights)

    @property
    def ids(self) -> Sequence[str]:
        """Ids are not loaded.

        Raises:
            UserError: Always. An arm that reads ids needs a file of weights.
        """
        raise UserError(
            "weights_file: the sampler reads the ids of all prompts, which a folder of weights does not load; use a "
            "weights.jsonl, or a sampler that reads no ids"
        )

    def drawable(self, arm: type[Arm]) -> tuple[Tensor, Tensor]:
        """Return all N rows, (N,) int64, and their base weights, (N,) float64.

        Raises:
            UserError: A weight is invalid.
        """
        n = self.num_prompts
        if not arm.needs:
            return torch.arange(n), torch.full((n,), 1 / n, dtype=torch.float64)
        if DENSITY in arm.needs:
            return torch.arange(n), checked_weights(self.weights)
        if TOPICS in arm.needs:
            raise UserError(
                f"sampler={arm.name}: reads the topics of all prompts, which a folder of weights does not load; use a "
                "weights.jsonl"
            )
        assert self.groups is not None
        _, group, sizes = self.groups.unique(return_inverse=True, return_counts=True)
        return torch.arange(n), checked_weights((1 / sizes.double())[group])


class Arm(ABC):
    """A way of drawing training prompts. It may change with what the steps observe.

    Every process of a run has its own copy of the arm. All copies draw the same rows and observe the same results, so
    they stay equal.

    Attributes:
        name: Name under which the class is registered; `register_arm` sets it.
        needs: What the class needs besides the prompts; `register_arm` sets it.
        rows: Rows that can be drawn, (M,) int64. A prompt that was too long for the embedder is not among them if the
            arm needs density or groups.
        base_weights: Weights of these rows, (M,) float64, sum 1: from task=density if the arm needs density, equal for
            every group of near-duplicates if it needs groups, equal for every topic if it needs topics, else equal for
            every row.
        never_drawn: Number of training prompts that cannot be drawn, N - M.

    Args:
        inputs: The prompts, their measured weights and the seed.

    Raises:
        UserError: A prompt lacks a weight, or fewer prompts can be drawn than a step needs.
    """

    name: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, inputs: ArmInputs | RowInputs) -> None:
        self.seed, self.num_prompts = inputs.seed, inputs.num_prompts
        self.rows, self.base_weights = inputs.drawable(type(self))
        self.never_drawn = self.num_prompts - len(self.rows)
        if len(self.rows) < inputs.prompts_per_step:
            raise UserError(
                f"{inputs.setting}={inputs.prompts_per_step}: sampler={self.name} can draw {len(self.rows)} of the "
                f"{self.num_prompts} training prompts; use more data or fewer prompts a step"
            )

    @classmethod  # noqa: B027 (most arms have nothing to check)
    def check_settings(cls, settings: JsonObject) -> None:
        """Check the ranges of the settings under `sampler`, before any data is loaded. Names and types are checked.

        Raises:
            UserError: A setting is out of range.
        """

    def require_weights(self, returned: object, count: int) -> Tensor:
        """Return what the arm's `weigh` returned as (count,) float64, after a check of its shape.

        Raises:
            UserError: It is not a tensor of `count` weights.
        """
        if isinstance(returned, Tensor) and returned.shape == (count,):
            return returned.double()
        shape = tuple(returned.shape) if isinstance(returned, Tensor) else type(returned).__name__
        raise UserError(
            f"{self._weigh}: returned {shape}, expected a tensor of shape ({count},), one weight for each prompt; "
            "correct it"
        )

    def require_valid(self, weights: Tensor) -> Tensor:
        """Return weights of all prompts normalised to sum 1, (N,) float64.

        Raises:
            UserError: A weight is negative or not finite, or all are 0.
        """
        try:
            return checked_weights(weights)
        except UserError as error:
            raise UserError(f"{self._weigh}: {error.args[0].partition(';')[0]}; correct it") from error

    @property
    def _weigh(self) -> str:
        """The method that gives the weights, for messages."""
        return f"sampler={self.name}: weigh of {type(self).__qualname__}"

    @abstractmethod
    def next(self, n: int) -> list[int]:
        """Return the rows of the next `n` draws."""

    @abstractmethod
    def observe(self, results: Sequence[Observation]) -> None:
        """Take note of the results of a step.

        Args:
            results: Results of all processes, in the same order in every process.
        """

    @abstractmethod
    def state_dict(self) -> State:
        """Return the state, from which an arm of the same settings resumes at the next draw."""

    @abstractmethod
    def load_state_dict(self, state: State, /) -> None:
        """Resume from a state of `state_dict`."""

    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """Return numbers for the journal of a step. Their names begin with 'sampler/'."""

    @abstractmethod
    def ledger(self) -> tuple[Tensor, Tensor]:
        """Return the intended draws (N,) float64 and the real draws (N,) int64 of each prompt so far."""

    @property
    @abstractmethod
    def sampling_weights(self) -> Tensor:
        """The probability of each prompt at the next draw, (N,) float64, sum 1."""


def _config_of(name: str, arm: type[Arm]) -> JsonObject:
    """Return the config of an arm without a YAML file: its name and the defaults of its settings.

    Raises:
        UserError: A setting has no default.
    """
    return {"sampler": {"name": name, **defaults_of(arm, "sampler", name, "setting")}}


ARMS: Registry[type[Arm]] = Registry("sampler arm", "sampler", _config_of)


def register_arm(name: str, *, needs: tuple[str, ...] = ()) -> Callable[[type[A]], type[A]]:
    """Return a decorator that registers a class as sampler=NAME. Its keyword-only arguments are settings of `sampler`.

    Args:
        name: Name of the arm.
        needs: What the arm needs besides the prompts: ("density",) for the weights of task=density, ("groups",) for
            its groups of near-duplicates, ("topics",) for the column `topic` of the prompts file.

    Raises:
        UserError: The name is taken or not an identifier, or a need is unknown.
    """
    if unknown := sorted(set(needs) - {DENSITY, GROUPS, TOPICS}):
        raise UserError(
            f"sampler={name}: needs={unknown[0]} is unknown; an arm can need {DENSITY}, {GROUPS}, {TOPICS}, or nothing"
        )

    def register(arm: type[A]) -> type[A]:
        ARMS.add(name, arm)
        arm.name, arm.needs = name, needs
        return arm

    return register
