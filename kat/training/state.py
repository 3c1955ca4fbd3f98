"""What the loops of task=grpo and task=reward share besides a run's folder: settings, trained weights, sampler."""

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
from latentwire.harness.results import write_jsonl
from latentwire.harness.run import RunSpec, Stateful


@dataclass
class LoopSpec(RunSpec):
    """Those of every run, and what decides how long it learns and from which prompts."""

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
            UserError: One of the wrong kind or out of its range, or an unknown sampler.
        """
        if cfg.sampler.name not in ARMS:
            raise UserError(f"sampler={cfg.sampler.name}: unknown; use one of {', '.join(ARMS)}")
        return super().of(cfg)

    def identity(self) -> dict[str, Any]:
        """Return those that decide what is learnt."""
        return {"seed": self.seed, "steps": self.steps, "held_out": self.held_out}


@dataclass(frozen=True)
class TrainableParameters:
    """The weights of a model that are trained; the others are as they were loaded."""

    parameters: dict[str, nn.Parameter]

    def state_dict(self) -> dict[str, Any]:
        """Return them by name."""
        return {name: parameter.detach().cpu() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Become those of a state."""
        for name, parameter in self.parameters.items():
            parameter.copy_(state_dict[name])


def learner_of(
    parameters: dict[str, nn.Parameter], optimizer: AdamW, scheduler: LambdaLR, sampler: DensityAwareSampler
) -> dict[str, Stateful]:
    """Return what changes while a loop trains, by its names in a checkpoint."""
    return {
        "parameters": TrainableParameters(parameters),
        "optimizer": optimizer,
        "scheduler": scheduler,
        "sampler": sampler,
    }


def measured_weights(cfg: DictConfig) -> tuple[dict[str, float], list[str]]:
    """Return the weights of task=density by prompt id, and the ids of prompts that the embedder could not read.

    Nothing of either for the uniform arm, which looks at no weights.

    Raises:
        UserError: Weights that are missing or damaged.
    """
    if cfg.sampler.name == "uniform":
        return {}, []
    ids, _, weights = read_weights(locate(cfg, "weights_file"))
    unread = record_of(locate(cfg, "embeddings_file")).get("too_long") or []
    return dict(zip(ids, weights.tolist(), strict=True)), unread


def save_ledger(folder: Path, sampler: DensityAwareSampler, ids: Sequence[str]) -> None:
    """Write how often each training prompt was meant to be drawn, and was, up to now.

    To be called before a checkpoint is written: no run with a last checkpoint is then without its ledger, and one that
    is killed between the two draws the same again and writes it anew.
    """
    meant, drawn = (numbers.tolist() for numbers in sampler.ledger())
    rows = zip(ids, meant, drawn, strict=True)
    write_jsonl(folder / "ledger.jsonl", ({"id": n, "intended": m, "drawn": d} for n, m, d in rows))
