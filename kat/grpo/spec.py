"""The settings under `grpo`. Main entry: `GrpoSpec`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kat.data.chat import PLACE
from kat.grpo.objective import GRPOObjective
from kat.grpo.reward_sum import check_names
from kat.grpo.rollout import Sampling
from kat.training.model_folder import settings_in_effect
from latentwire.harness.errors import UserError
from latentwire.harness.results import JsonObject

AT_LEAST_1 = (
    "prompts_per_step",
    "num_iterations",
    "eval_every",
    "eval_generations",
    "ref_model_sync_steps",
    "dynamic_sampling_rounds",
)


@dataclass
class GrpoSpec(GRPOObjective):
    """The settings under `grpo`, including the objective's; conf/task/grpo.yaml explains them."""

    prompts_per_step: int
    num_generations: int
    max_completion_length: int
    prompt_template: str | None
    temperature: float
    top_p: float
    num_iterations: int
    mask_truncated_completions: bool
    sync_ref_model: bool
    ref_model_sync_steps: int
    ref_model_mixup_alpha: float
    dynamic_sampling: bool
    dynamic_sampling_rounds: int
    reward_funcs: list[str]
    reward_weights: list[float]
    reward_settings: dict[str, dict[str, Any]] | None  # Any, because OmegaConf refuses lists for object
    eval_every: int
    eval_prompts: int
    eval_generations: int
    eval_truth: bool
    sampling_stream: int

    def __post_init__(self) -> None:
        if self.num_generations < 2:
            raise UserError(
                f"grpo.num_generations={self.num_generations}: advantages compare the completions of a prompt with one "
                "another; use at least 2"
            )
        for name in AT_LEAST_1:
            if getattr(self, name) < 1:
                raise UserError(f"grpo.{name}={getattr(self, name)}: must be at least 1")
        if self.eval_prompts < 0:
            raise UserError(f"grpo.eval_prompts={self.eval_prompts}: must be 0 (no evaluation) or more")
        if self.eval_truth and not self.eval_prompts:
            raise UserError(
                "grpo.eval_truth=true: with grpo.eval_prompts=0 nothing is evaluated; leave one of them out"
            )
        if self.eval_truth and self.prompt_template is not None:
            raise UserError("grpo.eval_truth=true: a world's base model reads prompts without a template; leave out "
                            "grpo.prompt_template")  # fmt: skip
        if self.sampling_stream < 0:
            raise UserError(f"grpo.sampling_stream={self.sampling_stream}: must be 0 or more")
        if self.prompt_template is not None and PLACE not in self.prompt_template:
            raise UserError(
                f"grpo.prompt_template={self.prompt_template!r}: has no {PLACE}, so all prompts would be the same; "
                f"write {PLACE} where the prompt belongs, or null"
            )
        check_names(self.reward_funcs, self.reward_weights)
        self.check()
        self._check_reference()
        self.sampling(self.num_generations, batch_tokens=1).check()

    def _check_reference(self) -> None:
        if not 0 < self.ref_model_mixup_alpha <= 1:
            raise UserError(
                f"grpo.ref_model_mixup_alpha={self.ref_model_mixup_alpha}: the policy's share of the new reference "
                "must be above 0 and at most 1; 1 copies the policy"
            )
        if self.sync_ref_model and not self.beta:
            raise UserError(
                "grpo.sync_ref_model=true: with grpo.beta=0 the run has no reference; use a beta above 0, or "
                "leave it out"
            )

    def sampling(self, num_generations: int, batch_tokens: int) -> Sampling:
        """Return the settings of the sampling.

        Args:
            num_generations: Number of completions of a prompt.
            batch_tokens: Maximum number of positions in a batch.
        """
        return Sampling(num_generations, self.max_completion_length, self.temperature, self.top_p, batch_tokens)

    def identity(self) -> JsonObject:
        """Return the settings that decide what is learnt.

        A setting that an earlier version lacked is left out while it is off, so that a run of that version goes on.
        """
        settings = settings_in_effect({f"grpo.{name}": value for name, value in vars(self).items()})
        return {name.removeprefix("grpo."): value for name, value in settings.items()}
