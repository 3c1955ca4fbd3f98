"""The draws of an epoch: their order, their repetitions and their division among ranks. Main entry: `DrawPlan`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from kat.sampling.draws import DrawWeights
from latentwire.harness.errors import UserError


class OrderSettings(TypedDict, total=False):
    """Settings of `DrawPlan` besides the number of draws."""

    replacement: bool
    seed: int
    num_generations: int
    prompts_per_batch: int
    batch_repeats: int
    rank: int
    num_replicas: int


class DrawSettings(OrderSettings, total=False):
    """Keyword arguments of `kat.sampling.sampler.DensityAwareSampler`; `DrawPlan` explains them."""

    num_samples: int | None


@dataclass(frozen=True)
class DrawPlan:
    """Which draw each rank yields at each position of an epoch.

    Order: an epoch is one list of draws. It depends only on the seed and the epoch, and is the same on every rank.

    Ranks: rank r of R takes every R-th draw, beginning with draw r. No draw is taken twice, and all ranks take the
    same number. Draws at the end that do not fill a batch on every rank are left out.

    Groups: each draw is yielded `num_generations` times in a row. Each block of `prompts_per_batch` draws is yielded
    `batch_repeats` times before the next block, as in TRL's RepeatSampler, which reuses completions.

    Attributes:
        num_samples: Number of draws in an epoch over all ranks.
        replacement: Whether a prompt may be drawn twice in an epoch, see `kat.sampling.draws.draw`.
        seed: Seed of the draws.
        num_generations: G, the number of times that each draw is yielded in a row.
        prompts_per_batch: Number of draws in a block.
        batch_repeats: Number of times that each block is yielded.
        rank: Rank of this process.
        num_replicas: Number of processes that share the draws.

    Raises:
        UserError: A number is below 1, the rank is not one of the ranks, or there are too few draws for the ranks.
    """

    num_samples: int
    replacement: bool = True
    seed: int = 0
    num_generations: int = 1
    prompts_per_batch: int = 1
    batch_repeats: int = 1
    rank: int = 0
    num_replicas: int = 1

    def __post_init__(self) -> None:
        for name in ("num_samples", "num_generations", "prompts_per_batch", "batch_repeats", "num_replicas"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
        if not 0 <= self.rank < self.num_replicas:
            raise UserError(f"rank={self.rank}: must be from 0 to num_replicas - 1 = {self.num_replicas - 1}")
        if self.draws == 0:
            raise UserError(
                f"num_samples={self.num_samples}: {self.num_replicas} ranks with {self.prompts_per_batch} prompts a "
                f"batch need at least {self._draws_per_batch}; draw more or use fewer ranks"
            )

    @property
    def _draws_per_batch(self) -> int:
        return self.prompts_per_batch * self.num_replicas

    @property
    def _block(self) -> int:
        return self.prompts_per_batch * self.num_generations

    @property
    def draws(self) -> int:
        """The number of draws in an epoch over all ranks that fill a batch on every rank."""
        return self.num_samples // self._draws_per_batch * self._draws_per_batch

    def __len__(self) -> int:
        """Return the number of indices that each rank gets in an epoch."""
        return self.draws // self.num_replicas * self.num_generations * self.batch_repeats

    def draw_at(self, position: int) -> int:
        """Return which of its draws a rank yields at `position` of the epoch, counted from 0."""
        block, within = divmod(position, self._block * self.batch_repeats)
        return block * self.prompts_per_batch + within % self._block // self.num_generations

    def draws_behind(self, position: int) -> int:
        """Return the number of draws over all ranks behind the first `position` indices of each rank."""
        if position == 0:
            return 0
        block, within = divmod(position - 1, self._block * self.batch_repeats)
        # Repetitions of a block come after all of its draws, hence the minimum.
        started = min(within // self.num_generations + 1, self.prompts_per_batch)
        return (block * self.prompts_per_batch + started) * self.num_replicas

    def order(self, weights: DrawWeights, epoch: int) -> Tensor:
        """Return the draws of an epoch over all ranks, (draws,) int64.

        Args:
            weights: The sampling weights of the rows.
            epoch: The number of the epoch, from 0.
        """
        digest = hashlib.blake2b(f"draws {self.seed} {epoch}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") % 2**63)
        return weights.draw(self.num_samples, replacement=self.replacement, generator=generator)[: self.draws]

    def identity(self, weights: DrawWeights) -> dict[str, str | int]:
        """Return everything that the order of the indices depends on except the rank, so all ranks share a state."""
        return {
            "weights": weights.digest,
            **{name: value for name, value in vars(self).items() if name != "rank"},
        }

    def check(self, weights: DrawWeights) -> None:
        """Check that the draws of an epoch without replacement leave the weights an effect.

        Args:
            weights: The sampling weights of the rows.

        Raises:
            UserError: The draws without replacement exceed the prompts, or take all of them although weights differ.
        """
        if self.replacement:
            return
        if self.num_samples > weights.positive:
            raise UserError(
                f"num_samples={self.num_samples}: only {weights.positive} prompts can be drawn without replacement; "
                "draw fewer, or use replacement=true"
            )
        if self.num_samples == weights.positive and not weights.are_equal():
            raise UserError(
                f"num_samples={self.num_samples} without replacement draws every prompt once, so the weights would "
                "only change the order; draw fewer, or use replacement=true"
            )
