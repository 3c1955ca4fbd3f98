"""One configuration as typed values, with the hash that identifies its result. Main entry: `read()`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from accelerate import PartialState
from omegaconf import DictConfig, OmegaConf

import latentwire
from latentwire.data.examples import DataSpec
from latentwire.evaluation.setup import Component, Settings, identity
from latentwire.harness.device import choose_dtype
from latentwire.harness.memory import choose_batch_tokens
from latentwire.harness.results import config_hash
from latentwire.harness.typed_config import typed
from latentwire.lm.spec import ModelSpec


@dataclass(frozen=True)
class Request:
    """One configuration: a model, data and settings, with the source and the transform to evaluate."""

    model: ModelSpec
    data: DataSpec
    settings: Settings
    dtype: torch.dtype
    source: Component
    transform: Component
    passage: bool  # whether the prompts contain their passages
    block_size: int  # examples in the first block; 0: no blocks

    @property
    def key(self) -> str:
        """Hash of everything that decides the result, including the version of this project."""
        about = identity(
            self.model, self.data, self.settings, self.dtype, self.source, self.transform, self.passage, self.block_size
        )
        return config_hash({**about, "version": latentwire.__version__})


def read_settings(cfg: DictConfig, state: PartialState) -> Settings:
    """Return the settings of an evaluation from a config, with batch_tokens chosen for the device.

    Raises:
        UserError: A setting has the wrong type.
    """
    values = {field.name: cfg[field.name] for field in fields(Settings)}
    values["batch_tokens"] = choose_batch_tokens(cfg.batch_tokens, state.device)
    return typed(Settings, values)


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
        source=Component(source.name, plain(source.dials)),
        transform=Component(transform.name, plain(transform.dials)),
        passage=cfg.control != "empty",
        block_size=block_size,
    )


def plain(node: Any) -> Any:
    """Return a config node as plain Python values, with interpolations resolved."""
    return OmegaConf.to_container(node, resolve=True)
