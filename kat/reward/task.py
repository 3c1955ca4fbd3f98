"""The task reward: train a reward model on preference pairs; a sampler draws the prompts. Main entry: `reward()`."""

from __future__ import annotations

from omegaconf import DictConfig

from kat.pipeline.artifacts import locate
from kat.pipeline.ensure import ensure
from kat.reward.learning import RewardLearning
from kat.reward.settings import RewardSettings
from kat.training.state import arm_identity
from latentwire.harness.assets import file_sha256
from latentwire.harness.device import accelerator_state
from latentwire.harness.errors import UserError
from latentwire.harness.results import JsonObject
from latentwire.harness.session import Session, job
from latentwire.harness.training import TrainingJob, accelerator_of, train


@job
def reward(cfg: DictConfig, session: Session | None = None) -> JsonObject:
    """Train a reward model, or continue a run that was interrupted; evaluate it on the held-out pairs.

    Returns:
        The content of result.json, a `kat.records.RewardResult`.

    Raises:
        UserError: The data or the model cannot be loaded, a setting is out of range, or training fails (see
            `latentwire.harness.training.train`).
    """
    settings = RewardSettings.of(cfg)
    spec, processes = settings.spec, accelerator_state(cfg.device).num_processes
    accelerator = accelerator_of(cfg)
    if spec.prompts_per_step < processes:
        raise UserError(f"prompts_per_step={spec.prompts_per_step}: must be at least {processes}, the number of "
                        "processes; use fewer processes or more prompts")  # fmt: skip
    ensure(cfg, ["pairs", "prompts", "embed", "density"])  # for every sampler: the report needs densities
    identity = {
        "task": "reward",
        "precision": accelerator.mixed_precision,
        "pairs_sha256": file_sha256(locate(cfg, "pairs_file")),
        **arm_identity(cfg),
        **settings.identity(),
    }
    return train(
        TrainingJob(
            cfg=cfg,
            spec=settings.loop,
            identity=identity,
            sizes={"batch_tokens": spec.batch_tokens, "states_gib": settings.cache.states_gib},
            product=("reward model", "model"),
            build=lambda run: RewardLearning(run, settings, accelerator),
        )
    )
