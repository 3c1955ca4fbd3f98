"""Settings of task=world. Main entry: `WorldSettings.of()`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from omegaconf import DictConfig

from kat.world.language import VERSION, WorldSpec
from latentwire.harness.errors import UserError
from latentwire.harness.optimization import OptimizerSpec
from latentwire.harness.results import JsonObject
from latentwire.harness.run import RunSpec
from latentwire.harness.typed_config import typed


@dataclass
class WorldRunSpec(RunSpec):
    """RunSpec plus training length."""

    steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise UserError(f"steps={self.steps}: must be at least 1")


@dataclass
class BaseSpec:
    """The base model and its corpus."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    initializer_range: float  # standard deviation of the first weights
    lines_per_step: int
    valid_share: float  # share of the lines with a valid answer
    prompt_weight: float  # weight of a prompt's token in the loss; an answer's token weighs 1

    def __post_init__(self) -> None:
        for name in ("hidden_size", "intermediate_size", "layers", "heads", "lines_per_step"):
            if getattr(self, name) < 1:
                raise UserError(f"base.{name}={getattr(self, name)}: must be at least 1")
        if self.hidden_size % (2 * self.heads):
            raise UserError(
                f"base.hidden_size={self.hidden_size}: must be a multiple of {2 * self.heads}, twice base.heads"
            )
        if not 0 < self.valid_share <= 1:
            raise UserError(f"base.valid_share={self.valid_share}: must be above 0 and at most 1")
        if not 0 <= self.prompt_weight <= 1 or not 0 < self.initializer_range < 1:
            raise UserError(
                f"base.prompt_weight={self.prompt_weight} base.initializer_range={self.initializer_range}: must be "
                "from 0 to 1"
            )


@dataclass(frozen=True)
class WorldSettings:
    """All settings of task=world."""

    run: WorldRunSpec
    world: WorldSpec
    base: BaseSpec
    optimizer: OptimizerSpec

    @classmethod
    def of(cls, cfg: DictConfig) -> Self:
        """Return the settings of a config.

        Raises:
            UserError: A setting has the wrong type or is out of range.
        """
        return cls(
            run=WorldRunSpec.of(cfg),
            world=typed(WorldSpec, cfg.world, "world."),
            base=typed(BaseSpec, cfg.base, "base."),
            optimizer=typed(OptimizerSpec, cfg.optimizer, "optimizer."),
        )

    def identity(self) -> JsonObject:
        """Return the settings that decide the world and its base model."""
        return {
            "version": VERSION,
            "seed": self.run.seed,
            "steps": self.run.steps,
            "world": dict(vars(self.world)),
            "base": dict(vars(self.base)),
            "optimizer": dict(vars(self.optimizer)),
        }
