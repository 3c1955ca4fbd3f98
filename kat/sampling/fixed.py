"""Arms whose weights are known before training: density and its controls. Main entry: `FixedWeights`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from kat.sampling.base import DENSITY, GROUPS, TOPICS, Arm, ArmInputs, Observation, RowInputs, register_arm
from kat.sampling.sampler import DensityAwareSampler
from latentwire.harness.checkpoint import State


class FixedWeights(Arm):
    """Draws of a `DensityAwareSampler`, with replacement and without end. A subclass gives the weights.

    `weigh` is called once, after `__init__`, so it can use all that a subclass sets there.

    Args:
        inputs: The prompts, their measured weights and the seed.

    Raises:
        UserError: A prompt lacks a weight, or fewer prompts can be drawn than a step needs.
    """

    def __init__(self, inputs: ArmInputs | RowInputs) -> None:
        super().__init__(inputs)
        self._draws = self._endless()

    @cached_property
    def sampler(self) -> DensityAwareSampler:
        """The sampler, made at its first use.

        Raises:
            UserError: A weight is invalid.
        """
        weights = torch.zeros(self.num_prompts, dtype=torch.float64)
        weights[self.rows] = self.require_weights(self.weigh(self.base_weights), len(self.rows))
        self.require_valid(weights)
        return DensityAwareSampler(weights, seed=self.seed)

    @abstractmethod
    def weigh(self, weights: Tensor) -> Tensor:
        """Return the sampling weights from the base weights, (M,) -> (M,) float64. They need not sum to 1."""

    def _endless(self) -> Iterator[int]:
        while True:
            yield from self.sampler

    def next(self, n: int) -> list[int]:
        """Return the rows of the next `n` draws."""
        return [next(self._draws) for _ in range(n)]

    def observe(self, results: Sequence[Observation]) -> None:
        """Do nothing: the weights are fixed."""

    def state_dict(self) -> State:
        """Return the state of the sampler."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: State, /) -> None:
        """Resume at the next draw.

        Raises:
            UserError: The state comes from other weights, prompts or another seed.
        """
        self.sampler.load_state_dict(state)
        self._draws = self._endless()

    def metrics(self) -> dict[str, float]:
        """Return no numbers: nothing changes."""
        return {}

    def ledger(self) -> tuple[Tensor, Tensor]:
        """Return the intended draws (N,) float64 and the real draws (N,) int64 of each prompt so far."""
        return self.sampler.ledger()

    @property
    def sampling_weights(self) -> Tensor:
        """The probability of each prompt at every draw, (N,) float64, sum 1."""
        return self.sampler.weights


@register_arm("uniform")
class Uniform(FixedWeights):
    """Every prompt weighs the same."""

    def weigh(self, weights: Tensor) -> Tensor:
        """Return the equal base weights, (M,)."""
        return weights


@register_arm("deduplicated", needs=(GROUPS,))
class Deduplicated(FixedWeights):
    """Every group of near-duplicates weighs the same, and so do the prompts of a group among themselves."""

    def weigh(self, weights: Tensor) -> Tensor:
        """Return the base weights, (M,), which are equal for every group."""
        return weights


@register_arm("density", needs=(DENSITY,))
class ByDensity(FixedWeights):
    """The weights of task=density: a rare prompt weighs more."""

    def weigh(self, weights: Tensor) -> Tensor:
        """Return the density weights, (M,)."""
        return weights


@register_arm("reversed", needs=(DENSITY,))
class Reversed(FixedWeights):
    """A control: the density weights in opposite order, so the rarest prompt weighs least."""

    def weigh(self, weights: Tensor) -> Tensor:
        """Return the weights with the smallest and the largest exchanged, and so on, (M,)."""
        order = weights.argsort(stable=True)
        return torch.empty_like(weights).scatter(0, order, weights[order.flip(0)])


@register_arm("shuffled", needs=(DENSITY,))
class Shuffled(FixedWeights):
    """A control: the density weights assigned at random. Prompts repeat as often, whether they are rare or not."""

    def weigh(self, weights: Tensor) -> Tensor:
        """Return the weights in an order that the seed decides, (M,)."""
        return weights[torch.randperm(len(weights), generator=torch.Generator().manual_seed(self.seed))]


@register_arm("oracle", needs=(TOPICS,))
class Oracle(FixedWeights):
    """Every topic weighs the same, by the column `topic` of the prompts file: the best that a density could do."""

    def weigh(self, weights: Tensor) -> Tensor:
        """Return the base weights, (M,), which are equal for every topic."""
        return weights
