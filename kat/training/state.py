"""Settings and state that the loops of task=grpo and task=reward share. Main entries: `LoopSpec`, `arm_of()`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, Self, TypedDict

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from kat.data.heldout import require_share
from kat.data.prompts import read_prompts, topics_of
from kat.data.tables import read_groups, read_weights
from kat.embedding.store import too_long_ids
from kat.pipeline.artifacts import locate, sampler_settings
from kat.pipeline.origin import check_crowd_gate
from kat.sampling.arms import ARMS, Arm, ArmInputs, arm_settings, build_arm, needs_density
from kat.sampling.base import DENSITY, GROUPS, TOPICS
from latentwire.harness.assets import file_sha256
from latentwire.harness.checkpoint import State
from latentwire.harness.errors import UserError
from latentwire.harness.progress import log
from latentwire.harness.results import JsonObject, write_jsonl
from latentwire.harness.run import RunSpec, Stateful


@dataclass
class LoopSpec(RunSpec):
    """RunSpec plus training length and held-out share."""

    steps: int
    held_out: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise UserError(f"steps={self.steps}: must be at least 1")
        require_share(self.held_out)

    @classmethod
    def of(cls, cfg: DictConfig) -> Self:
        """Return the settings of a config.

        Raises:
            UserError: A setting, also one of the sampler, is unknown, has the wrong type or is out of range.
        """
        arm_settings(cfg.sampler.name, sampler_settings(cfg))
        return super().of(cfg)

    def identity(self) -> JsonObject:
        """Return the settings that decide what is learnt."""
        return {"seed": self.seed, "steps": self.steps, "held_out": self.held_out}


@dataclass(frozen=True)
class TrainableParameters:
    """The trainable weights of a model, saved in a checkpoint without the frozen weights."""

    parameters: Mapping[str, Tensor]  # by name

    def state_dict(self) -> State:
        """Return the weights by name, on the CPU."""
        return {name: parameter.detach().cpu() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def load_state_dict(self, state_dict: State) -> None:
        """Copy saved weights into the model."""
        for name, parameter in self.parameters.items():
            parameter.copy_(state_dict[name])


def learner_of(
    parameters: dict[str, nn.Parameter], optimizer: AdamW, scheduler: LambdaLR, sampler: Stateful
) -> dict[str, Stateful]:
    """Return the objects that change while a loop trains, by their keys in a checkpoint."""
    return {
        "parameters": TrainableParameters(parameters),
        "optimizer": optimizer,
        "scheduler": scheduler,
        "sampler": sampler,
    }


class ArmIdentity(TypedDict):
    """What decides the draws of a run, besides its prompts and its seed."""

    sampler: str
    sampler_settings: JsonObject
    sampler_source: str | None  # digest of the module of a plugin's arm
    weights_sha256: str | None  # digest of the file of task=density; None if the arm does not need it
    force_weights: NotRequired[bool]  # whether weights that fail the crowd gate may train; for arms that need density


def arm_identity(cfg: DictConfig) -> ArmIdentity:
    """Return what decides the draws of a run. The files that the arm needs must exist.

    Raises:
        UserError: The sampler or a setting of it is invalid, or its weights fail the crowd gate of
            `kat.density.gates`, unless force_weights is set.
    """
    name = str(cfg.sampler.name)
    identity: ArmIdentity = {
        "sampler": name,
        "sampler_settings": arm_settings(name, sampler_settings(cfg)),
        "sampler_source": ARMS.source_digest(name),
        "weights_sha256": file_sha256(locate(cfg, "weights_file")) if needs_density(name) else None,
    }
    if DENSITY in ARMS[name].needs:
        check_crowd_gate(locate(cfg, "weights_file"), cfg.force_weights)
        identity["force_weights"] = cfg.force_weights
    return identity


def arm_of(cfg: DictConfig, ids: Sequence[str], prompts_per_step: int, setting: str = "prompts_per_step") -> Arm:
    """Return the arm of a config, which draws training prompts. Log a warning if it never draws some of them.

    Args:
        cfg: Config of the run.
        ids: Ids of the N training prompts, in the order of their rows.
        prompts_per_step: Number of draws of a step, over all processes.
        setting: Name of the setting with that number, for messages.

    Raises:
        UserError: The weights are missing or damaged, a prompt has no weight, or fewer prompts can be drawn than a step
            needs.
    """
    groups = read_groups(locate(cfg, "weights_file")) if GROUPS in ARMS[cfg.sampler.name].needs else {}
    topics = topics_of(read_prompts(locate(cfg, "prompts_file"))) if TOPICS in ARMS[cfg.sampler.name].needs else {}
    inputs = ArmInputs(ids, cfg.seed, *_measured_weights(cfg), prompts_per_step, setting, groups, topics)
    arm = build_arm(cfg.sampler.name, sampler_settings(cfg), inputs)
    if arm.never_drawn:
        log(f"warning: {arm.never_drawn} training prompts were too long for the embedder; they are never drawn")
    return arm


def _measured_weights(cfg: DictConfig) -> tuple[dict[str, float], list[str]]:
    """Return the sampling weights of task=density by prompt id, and the ids of prompts too long for the embedder.

    Both are empty for a sampler that does not need them.

    Raises:
        UserError: The weights are missing or damaged.
    """
    if not needs_density(cfg.sampler.name):
        return {}, []
    ids, _, sampling_weights = read_weights(locate(cfg, "weights_file"))
    too_long = too_long_ids(locate(cfg, "embeddings_file"))
    return dict(zip(ids, sampling_weights.tolist(), strict=True)), too_long


def save_ledger(folder: Path, arm: Arm, ids: Sequence[str]) -> None:
    """Write ledger.jsonl: the intended and the real number of draws of each training prompt so far.

    Call it before writing a checkpoint, so that every checkpoint has its ledger. A run killed between the two repeats
    the same draws and writes the ledger again.
    """
    intended, drawn = (numbers.tolist() for numbers in arm.ledger())
    rows = zip(ids, intended, drawn, strict=True)
    write_jsonl(folder / "ledger.jsonl", ({"id": id_, "intended": i, "drawn": d} for id_, i, d in rows))
