"""Settings of task=reward. Main entry: `RewardSettings.of()`."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Self

from omegaconf import DictConfig

from kat.training.state import LoopSpec
from kat.training.tuning import TuningSpec
from latentwire.harness.errors import UserError
from latentwire.harness.optimization import OptimizerSpec
from latentwire.harness.results import JsonObject
from latentwire.harness.typed_config import typed
from latentwire.lm.spec import ModelSpec


@dataclass
class CacheSpec:
    """Memory for cached states; does not affect what is learnt."""

    states_gib: float

    def __post_init__(self) -> None:
        if not 0 <= self.states_gib < math.inf:
            raise UserError(f"states_gib={self.states_gib}: must be 0 (keep none) or more")


@dataclass
class RewardSpec:
    """Settings of task=reward that decide the result, besides model, sampler, tuning and optimizer."""

    split: str | None  # split of the pairs; None for all
    max_length: int
    prompts_per_step: int
    pairs_per_prompt: int
    batch_tokens: int

    def __post_init__(self) -> None:
        for name in ("prompts_per_step", "pairs_per_prompt", "batch_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.max_length < 2:
            raise UserError(f"max_length={self.max_length}: a prompt and an answer need at least 2 tokens")


@dataclass(frozen=True)
class RewardSettings:
    """All settings of task=reward."""

    loop: LoopSpec
    spec: RewardSpec
    cache: CacheSpec
    model: ModelSpec
    tuning: TuningSpec
    optimizer: OptimizerSpec

    @classmethod
    def of(cls, cfg: DictConfig) -> Self:
        """Return the settings of a config.

        Raises:
            UserError: A setting has the wrong type or is out of range.
        """
        return cls(
            loop=LoopSpec.of(cfg),
            spec=typed(RewardSpec, {field.name: cfg[field.name] for field in fields(RewardSpec)}),
            cache=typed(CacheSpec, {"states_gib": cfg.states_gib}),
            model=typed(ModelSpec, cfg.model, "model."),
            tuning=typed(TuningSpec, cfg.tuning, "tuning."),
            optimizer=typed(OptimizerSpec, cfg.optimizer, "optimizer."),
        )

    def identity(self) -> JsonObject:
        """Return the settings that decide what is learnt."""
        return {
            "model": self.model.identity(),
            **self.loop.identity(),
            **vars(self.spec),
            "tuning": dict(vars(self.tuning)),
            "optimizer": dict(vars(self.optimizer)),
        }
