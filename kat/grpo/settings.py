"""Settings of task=grpo. Main entry: `GrpoSettings.of()`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from omegaconf import DictConfig

from kat.grpo.given import content_of, policy_spec
from kat.grpo.spec import GrpoSpec
from kat.pipeline.artifacts import locate, sampler_settings
from kat.sampling.arms import needs_density
from kat.training.state import LoopSpec
from kat.training.tuning import TuningSpec
from latentwire.harness.device import accelerator_state
from latentwire.harness.errors import UserError
from latentwire.harness.memory import choose_batch_tokens
from latentwire.harness.optimization import OptimizerSpec
from latentwire.harness.results import JsonObject
from latentwire.harness.shard_files import is_sharded
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
            UserError: A setting has the wrong type or is out of range, `policy` is not the folder of a model, or the
                weights are a folder of shards.
        """
        state = accelerator_state(cfg.device)
        loop, spec = LoopSpec.of(cfg), typed(GrpoSpec, cfg.grpo, "grpo.")
        _require_weights_in_a_file(cfg, loop, spec)
        if spec.prompts_per_step % state.num_processes:
            raise UserError(
                f"grpo.prompts_per_step={spec.prompts_per_step}: {state.num_processes} processes cannot share them "
                f"evenly; use a multiple of {state.num_processes}"
            )
        tuning = typed(TuningSpec, cfg.tuning, "tuning.")
        _require_moving_reference(spec, loop, tuning)
        return cls(
            loop=loop,
            spec=spec,
            tuning=tuning,
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
            "grpo": self.spec.identity(),
            "tuning": dict(vars(self.tuning)),
            "optimizer": dict(vars(self.optimizer)),
        }


def _require_moving_reference(spec: GrpoSpec, loop: LoopSpec, tuning: TuningSpec) -> None:
    """Check that sync_ref_model moves the reference before the last step, to a mixture of policies.

    Raises:
        UserError: It does not.
    """
    if not spec.sync_ref_model:
        return
    if spec.ref_model_sync_steps >= loop.steps:
        raise UserError(
            f"grpo.ref_model_sync_steps={spec.ref_model_sync_steps}: the run has steps={loop.steps}, so no step would "
            "see another reference; use fewer, or leave out grpo.sync_ref_model"
        )
    if tuning.method == "lora" and spec.ref_model_mixup_alpha < 1:
        raise UserError(
            f"grpo.ref_model_mixup_alpha={spec.ref_model_mixup_alpha}: mixed adapters are not a mixture of policies; "
            "with tuning.method=lora use 1, which copies the policy"
        )


def _require_weights_in_a_file(cfg: DictConfig, loop: LoopSpec, spec: GrpoSpec) -> None:
    """Check that the sampler does not need a folder of weights: a run has all its prompts in memory.

    Raises:
        UserError: It does. The message has the command that draws the prompts of the run from the folder.
    """
    sampler, folder = cfg.sampler.name, cfg.weights_file
    if not needs_density(sampler) or not is_sharded(locate(cfg, "weights_file", folder=True)):
        return
    drawn = f"{sampler}_seed{loop.seed}.jsonl"
    settings = {
        "folder": cfg.folder,
        "weights_file": folder,
        "prompts_file": cfg.prompts_file,
        "sampler": sampler,
        **{f"sampler.{name}": value for name, value in sampler_settings(cfg).items()},
        "seed": loop.seed,
        "budget": loop.steps * spec.prompts_per_step,
        "held_out": loop.held_out,
        "eval_prompts": 2 * spec.eval_prompts,  # some may be too long for the policy
        "prompts_out": drawn,
    }
    command = " ".join(f"{name}={value}" for name, value in settings.items())
    raise UserError(
        f"weights_file={folder}: is a folder of weights, and a training run keeps its prompts in memory; draw them "
        f"first: python run.py task=subsample {command}; then train with prompts_file={drawn} sampler=uniform "
        f"name={sampler}_drawn_seed{loop.seed} in place of prompts_file, sampler and weights_file"
    )
