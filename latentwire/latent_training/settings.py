"""Settings of task=latent. Main entry: `LatentSettings.of()`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import torch
from omegaconf import DictConfig

from latentwire.data.examples import DataSpec
from latentwire.data.generator import GeneratedSpec
from latentwire.encoders.registry import encoder_identity, latents_plugins
from latentwire.harness.assets import file_sha256
from latentwire.harness.device import accelerator_state
from latentwire.harness.errors import UserError
from latentwire.harness.memory import choose_batch_tokens
from latentwire.harness.optimization import OptimizerSpec
from latentwire.harness.precision import choose_dtype
from latentwire.harness.results import JsonObject
from latentwire.harness.run import RunSpec
from latentwire.harness.typed_config import plain_values, typed
from latentwire.latent_training import passages
from latentwire.latent_training.losses import LossWeights
from latentwire.latent_training.step_plan import TrainingSpec
from latentwire.lm.spec import ModelSpec


@dataclass
class LatentRunSpec(RunSpec):
    """Root settings of a run that are not in `TrainingSpec`."""

    stop_epoch: int | None
    extra: str
    generated: int
    templates: str
    adapter_hidden: int
    adapter_scale: str


@dataclass(frozen=True)
class Chosen:
    """A choice in a config group: a name with its dials."""

    name: str
    dials: JsonObject

    @classmethod
    def of(cls, node: DictConfig) -> Self:
        """Return the choice of a config node with `name` and `dials`."""
        return cls(str(node.name), plain_values(node.dials))


@dataclass(frozen=True)
class LatentSettings:
    """All settings of task=latent."""

    run: LatentRunSpec
    spec: TrainingSpec
    loss_weights: LossWeights
    optimizer: OptimizerSpec
    model: ModelSpec
    data: DataSpec
    generated: GeneratedSpec
    encoder: Chosen
    transform: Chosen
    dtype: torch.dtype  # of the frozen LM
    stop_epoch: int

    @classmethod
    def of(cls, cfg: DictConfig) -> Self:
        """Return the settings of a config.

        Raises:
            UserError: A setting has the wrong type or is out of range.
        """
        device = accelerator_state(cfg.device).device
        run = LatentRunSpec.of(cfg)
        values = {field.name: cfg[field.name] for field in fields(TrainingSpec)}
        spec = typed(TrainingSpec, {**values, "batch_tokens": choose_batch_tokens(cfg.batch_tokens, device)})
        if spec.passages().extra_part != "all" and not run.extra:
            raise UserError(
                f"extra_part={spec.extra_part}: is a part of the extra file, and extra is not set; give extra=FILE, or "
                "leave extra_part out"
            )
        stop_epoch = spec.epochs if run.stop_epoch is None else run.stop_epoch
        if not 1 <= stop_epoch <= spec.epochs:
            raise UserError(f"stop_epoch={stop_epoch}: must be an epoch of the run, from 1 to epochs={spec.epochs}")
        return cls(
            run=run,
            spec=spec,
            loss_weights=typed(LossWeights, cfg.weights, "weights."),
            optimizer=typed(OptimizerSpec, cfg.optimizer, "optimizer."),
            model=typed(ModelSpec, cfg.model, "model."),
            data=typed(DataSpec, cfg.data, "data."),
            generated=GeneratedSpec(run.generated, run.templates),
            encoder=Chosen.of(cfg.encoder),
            transform=Chosen.of(cfg.embed_transform),
            dtype=choose_dtype(cfg.dtype, device),
            stop_epoch=stop_epoch,
        )

    def identity(self) -> JsonObject:
        """Return the settings and inputs that decide the trained encoder."""
        extra = Path(self.run.extra).expanduser()
        return {
            "model": self.model.identity(),
            "data": self.data.identity(),
            "passages": passages.FORMAT,
            "extra_sha256": file_sha256(extra) if self.run.extra and extra.is_file() else None,
            **({"generated": self.generated.identity()} if self.generated.count else {}),
            "dtype": str(self.dtype),
            "seed": self.run.seed,
            "encoder": encoder_identity(self.encoder.name, self.encoder.dials),
            "adapter_hidden": self.run.adapter_hidden,
            **({"adapter_scale": self.run.adapter_scale} if self.run.adapter_scale != "norm" else {}),
            "transform": {"name": self.transform.name, **self.transform.dials},
            **latents_plugins(self.encoder.name, self.transform.name, self.transform.dials),
            "weights": self.loss_weights.identity(),
            "optimizer": dict(vars(self.optimizer)),
            **self.spec.identity(),
        }
