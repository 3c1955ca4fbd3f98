"""The task grpo: train a policy on prompts that the sampler draws. Main entry: `grpo()`."""

from __future__ import annotations

from omegaconf import DictConfig

from kat.data.prompt_files import prompts_sha256
from kat.grpo.given import content_of, require_reward_columns, reward_folder, sources_of
from kat.grpo.learning import GrpoLearning
from kat.grpo.reward_calls import calls_of
from kat.grpo.reward_sum import factors_of
from kat.grpo.rewards import MODEL
from kat.grpo.settings import GrpoSettings
from kat.pipeline.artifacts import locate
from kat.pipeline.ensure import ensure, prompt_tasks
from kat.sampling.arms import needs_density
from kat.training.state import arm_identity
from latentwire.harness.results import JsonObject
from latentwire.harness.session import Session, job
from latentwire.harness.training import TrainingJob, accelerator_of, train


@job
def grpo(cfg: DictConfig, session: Session | None = None) -> JsonObject:
    """Train a policy by GRPO, or continue a run that was interrupted; missing inputs are made first.

    Returns:
        The content of result.json, a `kat.records.GrpoResult`.

    Raises:
        UserError: A setting is out of range, data and models cannot be loaded or do not fit each other, or training
            fails (see `latentwire.harness.training.train`).
    """
    accelerator = accelerator_of(cfg)
    settings = GrpoSettings.of(cfg)
    spec = settings.spec
    calls = calls_of(spec.reward_funcs, spec.reward_settings)
    factors_of(calls, spec.reward_funcs, spec.reward_weights)  # before any file is made
    functions = sources_of(calls)
    ensure(cfg, prompt_tasks(cfg))
    require_reward_columns(calls, locate(cfg, "prompts_file"), has_model=MODEL in spec.reward_funcs)
    ensure(cfg, ["embed", "density"] if needs_density(cfg.sampler.name) else [])
    judge_folder = reward_folder(cfg) if MODEL in spec.reward_funcs else None
    identity = {
        "task": "grpo",
        "reward": None if judge_folder is None else content_of(judge_folder),
        "reward_functions": functions,
        "prompts_sha256": prompts_sha256(locate(cfg, "prompts_file")),
        "precision": accelerator.mixed_precision,
        **arm_identity(cfg),
        **settings.identity(),
    }
    return train(
        TrainingJob(
            cfg=cfg,
            spec=settings.loop,
            identity=identity,
            sizes={"batch_tokens": settings.batch_tokens, "grpo.prompts_per_step": spec.prompts_per_step},
            product=("policy", "model"),
            build=lambda run: GrpoLearning(run, settings, accelerator, judge_folder),
        )
    )
