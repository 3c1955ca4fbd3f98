"""Settings and state that the loops of task=grpo and task=reward share. Main entries: `LoopSpec`, `learner_of()`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from omegaconf import DictConfig
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from kat.data.heldout import require_share
from kat.data.tables import read_weights
from kat.pipeline.artifacts import locate, record_of
from kat.sampling.arms import ARMS
from kat.sampling.sampler import DensityAwareSampler
from latentwire.harness.errors import UserError
from latentwire.harness.progress import log
from latentwire.harness.results import write_jsonl
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
            UserError: A setting has the wrong type or is out of range, or the sampler is unknown.
        """
        if cfg.sampler.name not in ARMS:
            raise UserError(f"sampler={cfg.sampler.name}: unknown; use one of {', '.join(ARMS)}")
        return super().of(cfg)

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide what is learnt."""
        return {"seed": self.seed, "steps": self.steps, "held_out": self.held_out}


@dataclass(frozen=True)
class TrainableParameters:
    """The trainable weights of a model, saved in a checkpoint without the frozen weights."""

    parameters: dict[str, nn.Parameter]  # by name

    def state_dict(self) -> dict[str, Any]:
        """Return the weights by name, on the CPU."""
        return {name: parameter.detach().cpu() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy saved weights into the model."""
        for name, parameter in self.parameters.items():
            parameter.copy_(state_dict[name])


def learner_of(
    parameters: dict[str, nn.Parameter], optimizer: AdamW, scheduler: LambdaLR, sampler: DensityAwareSampler
) -> dict[str, Stateful]:
    """Return the objects that change while a loop trains, by their keys in a checkpoint."""
    return {
        "parameters": TrainableParameters(parameters),
        "optimizer": optimizer,
        "scheduler": scheduler,
        "sampler": sampler,
    }


def measured_weights(cfg: DictConfig) -> tuple[dict[str, float], list[str]]:
    """Return the sampling weights of task=density by prompt id, and the ids of prompts too long for the embedder.

    Both are empty for sampler=uniform.

    Raises:
        UserError: The weights are missing or damaged.
    """
    if cfg.sampler.name == "uniform":
        return {}, []
    ids, _, sampling_weights = read_weights(locate(cfg, "weights_file"))
    too_long = record_of(locate(cfg, "embeddings_file")).get("too_long") or []
    return dict(zip(ids, sampling_weights.tolist(), strict=True)), too_long


def warn_never_drawn(count: int) -> None:
    """Log a warning if some training prompts have no embedding, so that they are never drawn."""
    if count:
        log(f"warning: {count} training prompts were too long for the embedder; they are never drawn")


def save_ledger(folder: Path, sampler: DensityAwareSampler, ids: Sequence[str]) -> None:
    """Write ledger.jsonl: the intended and the real number of draws of each training prompt so far.

    Call it before writing a checkpoint, so that every checkpoint has its ledger. A run killed between the two repeats
    the same draws and writes the ledger again.
    """
    intended, drawn = (numbers.tolist() for numbers in sampler.ledger())
    rows = zip(ids, intended, drawn, strict=True)
    write_jsonl(folder / "ledger.jsonl", ({"id": id_, "intended": i, "drawn": d} for id_, i, d in rows))
