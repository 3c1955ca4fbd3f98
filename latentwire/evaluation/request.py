"""One configuration as typed values, with the hash that identifies its result. Main entry: `read()`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch
from accelerate import PartialState
from omegaconf import DictConfig

import latentwire
from latentwire.data import prompts as prompt_format
from latentwire.data.examples import DataSpec
from latentwire.encoders.checkpoint import about_latents
from latentwire.encoders.registry import latents_plugins
from latentwire.evaluation.metrics import ALWAYS, ANSWER_METRICS, Scoring
from latentwire.evaluation.setup import FITTED_ON, Component, Settings
from latentwire.harness.errors import UserError
from latentwire.harness.memory import choose_batch_tokens
from latentwire.harness.precision import choose_dtype
from latentwire.harness.results import JsonObject, config_hash
from latentwire.harness.typed_config import plain_values, typed
from latentwire.lm.spec import ModelSpec
from latentwire.sources.registry import SOURCES
from latentwire.transforms.registry import is_fitted, transform_plugins


@dataclass(frozen=True)
class Request:
    """One configuration: a model, data and settings, with the source and the transform to evaluate."""

    model: ModelSpec
    data: DataSpec
    settings: Settings
    dtype: torch.dtype
    source: Component
    transform: Component
    passage: bool = True  # whether the prompts contain their passages
    scrambled: bool = False  # whether the source gets the passages of other examples
    block_size: int = 0  # examples in the first block; 0: no blocks
    scoring: Scoring = field(default_factory=Scoring)

    @property
    def key(self) -> str:
        """Hash of everything that decides the result, including the version of this project."""
        return config_hash({**self.identity(), "version": latentwire.__version__})

    def identity(self) -> JsonObject:
        """Return everything that decides a result, for its hash.

        A trained encoder is identified by the hash of its weights, not by its folder. The number of examples evaluated
        so far does not count: extending a budgeted result keeps its hash.

        Raises:
            UserError: A trained encoder is missing, or belongs to another model.
        """
        source, transform = self.source, self.transform
        plugins = {
            **SOURCES.plugin_sources([source.name]),
            **transform_plugins(transform.name, transform.dials),
            **ANSWER_METRICS.plugin_sources(self.scoring.names),
        }
        if (folder := SOURCES[source.name].encoder_folder(source.dials)) is not None:
            about = about_latents(folder, self.model.identity())
            dials = {dial: about["sha256"] if str(value) == folder else value for dial, value in source.dials.items()}
            source = Component(source.name, dials)
            plugins |= latents_plugins(about["encoder"], about["transform"], about["transform_dials"])
        compressed_shots = SOURCES[source.name].replaces_shots(self.source.dials)
        unchanged = SOURCES[source.name].unchanged.items()
        source = Component(
            source.name, {dial: value for dial, value in source.dials.items() if (dial, value) not in unchanged}
        )
        further = [name for name in self.scoring.names if name not in ALWAYS]
        return {
            "model": self.model.identity(),
            "data": self.data.identity(),
            "settings": {**self.settings.identity(), "dtype": str(self.dtype)},
            "prompt_format": prompt_format.FORMAT,
            "source": vars(source),
            "transform": vars(transform),
            **({"fitted_on": FITTED_ON} if is_fitted(transform.name, transform.dials) else {}),
            **({} if self.passage else {"passage": False}),
            **({"scrambled": True} if self.scrambled else {}),
            **({"compressed_shots": True} if compressed_shots else {}),
            **({"first": self.block_size} if self.block_size else {}),
            **({"metrics": further} if further else {}),
            **({"plugins": plugins} if plugins else {}),
        }


def read_settings(cfg: DictConfig, state: PartialState) -> Settings:
    """Return the settings of an evaluation from a config, with batch_tokens chosen for the device.

    Raises:
        UserError: A setting has the wrong type.
    """
    values = {field.name: cfg[field.name] for field in fields(Settings)}
    values["batch_tokens"] = choose_batch_tokens(cfg.batch_tokens, state.device)
    return typed(Settings, values)


def read_scoring(metrics: object, primary: str) -> Scoring:
    """Return the answer metrics that a config names.

    Args:
        metrics: Value of the setting `metrics`: names, or one name.
        primary: Value of the setting `primary_metric`.

    Raises:
        UserError: A name is unknown, or `metrics` is not a list of names.
    """
    names = [metrics] if isinstance(metrics, str) else metrics
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise UserError(f"metrics={metrics}: expected a list of names, such as metrics=[likelihood]")
    return Scoring.of(names, str(primary))


def read(cfg: DictConfig, state: PartialState, block_size: int) -> Request:
    """Return the configuration that a config describes, on this process's device.

    Args:
        cfg: Composed config of one configuration.
        state: Device and processes.
        block_size: Examples in the first block of a result that can be extended; 0: no blocks.

    Raises:
        UserError: A setting has the wrong type or does not exist.
    """
    settings = read_settings(cfg, state)
    source, transform = cfg.embed_source, cfg.embed_transform
    return Request(
        model=typed(ModelSpec, cfg.model, "model."),
        data=typed(DataSpec, cfg.data, "data."),
        settings=settings,
        dtype=choose_dtype(settings.dtype, state.device),
        source=Component(source.name, plain_values(source.dials)),
        transform=Component(transform.name, plain_values(transform.dials)),
        passage=cfg.control != "empty",
        scrambled=cfg.control == "scrambled",
        block_size=block_size,
        scoring=read_scoring(cfg.metrics, cfg.primary_metric),
    )
