"""The task latent: train an encoder of latents for a frozen LM. Main entry: `latent()`."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from omegaconf import DictConfig

from latentwire.harness.results import JsonObject
from latentwire.harness.training import TrainingJob, accelerator_of, train
from latentwire.latent_training.learning import LatentLearning
from latentwire.latent_training.settings import LatentSettings
from latentwire.records import checked


class _Reached(TypedDict):
    """How far a finished run has come."""

    stop_epoch: int
    stopped: bool


def latent(cfg: DictConfig) -> JsonObject:
    """Train an encoder, or continue a run that was interrupted; held-out passages decide when to stop.

    Returns:
        The content of result.json, a `latentwire.latent_training.records.LatentResult`.

    Raises:
        UserError: A setting is out of range, the data or the model cannot be loaded, or training fails (see
            `latentwire.harness.training.train`).
    """
    accelerator = accelerator_of(cfg)
    settings = LatentSettings.of(cfg)
    spec = settings.spec
    return train(
        TrainingJob(
            cfg=cfg,
            spec=settings.run,
            identity={"task": "latent", **settings.identity()},
            sizes={"batch_tokens": spec.batch_tokens, "passages_per_step": spec.passages_per_step},
            product=("encoder", "encoder"),
            build=lambda run: LatentLearning(run, settings, accelerator),
            covers=lambda result: _covers(result, settings.stop_epoch, Path(cfg.out).expanduser() / "result.json"),
        )
    )


def _covers(result: JsonObject, stop_epoch: int, path: Path) -> bool:
    """Return whether a finished run has reached an epoch, or stopped before it because it no longer improved."""
    reached = checked(_Reached, result, path, "train anew with force=true, or give another out=FOLDER")
    return reached["stop_epoch"] >= stop_epoch or reached["stopped"]
