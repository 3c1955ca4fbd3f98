"""Settings of task=grpo. Main entry: `GrpoSettings.of()`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from omegaconf import DictConfig

from kat.grpo.given import content_of, policy_spec
from kat.grpo.step import GrpoSpec
from kat.training.state import LoopSpec
from kat.training.tuning import TuningSpec
from latentwire.harness.device import accelerator_state
from latentwire.harness.errors import UserError
from latentwire.harness.memory import choose_batch_tokens
from latentwire.harness.optimization import OptimizerSpec
from latentwire.harness.results import JsonObject
from latentwire.harness.typed_config import typed
from latentwire.lm.spec import ModelSpec


@dataclass(frozen=True)
class GrpoSettings:
    """All settings of task=grpo."""

    loop: LoopSpec
    spec: GrpoSpec
    tuning: TuningSpec
    optimizer: OptimizerSpec
    policy: ModelSpec  # the model to start from
    is_continued: bool  # whether that model is the folder `policy`, not the model `model`
    batch_tokens: int

    @classmethod
    def of(cls, cfg: DictConfig) -> Self:
        """Return the settings of a config.

        Raises:
            UserError: A setting has the wrong type or is out of range, or `policy` is not the folder of a model.
        """
        state = accelerator_state(cfg.device)
        loop, spec = LoopSpec.of(cfg), typed(GrpoSpec, cfg.grpo, "grpo.")
        if spec.prompts_per_step % state.num_processes:
            raise UserError(
                f"grpo.prompts_per_step={spec.prompts_per_step}: {state.num_processes} processes cannot share them "
                f"evenly; use a multiple of {state.num_processes}"
            )
        return cls(
            loop=loop,
            spec=spec,
            tuning=typed(TuningSpec, cfg.tuning, "tuning."),
            optimizer=typed(OptimizerSpec, cfg.optimizer, "optimizer."),
            policy=policy_spec(cfg),
            is_continued=cfg.policy is not None,
            batch_tokens=choose_batch_tokens(cfg.batch_tokens, state.device),
        )

    def identity(self) -> JsonObject:
        """Return the settings that decide what is learnt; a policy's folder counts by the content of its files."""
        return {
            "policy": content_of(Path(self.policy.path)) if self.is_continued else self.policy.identity(),
            **self.loop.identity(),
            "batch_tokens": self.batch_tokens,
            "grpo": dict(vars(self.spec)),
            "tuning": dict(vars(self.tuning)),
            "optimizer": dict(vars(self.optimizer)),
        }
