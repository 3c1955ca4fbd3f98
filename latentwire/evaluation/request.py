"""What one config asks: its typed parts, and the hash of all that decides its result."""

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
    """One configuration, asked of one model about some data."""

    model: ModelSpec
    data: DataSpec
    settings: Settings
    dtype: torch.dtype
    source: Component
    transform: Component
    passage: bool  # whether the prompts hold their passages
    first: int  # 0, or the size of the first block of examples

    @property
    def key(self) -> str:
        """The hash of everything that decides the result, the version of this project too."""
        about = identity(
            self.model, self.data, self.settings, self.dtype, self.source, self.transform, self.passage, self.first
        )
        return config_hash({**about, "version": latentwire.__version__})


def read(cfg: DictConfig, state: PartialState, first: int) -> Request:
    """Return what a config asks on this device, in blocks of examples where `first` is not 0.

    Raises:
        UserError: A setting of the wrong type, or one that does not exist.
    """
    asked = {field.name: cfg[field.name] for field in fields(Settings)}
    asked["batch_tokens"] = choose_batch_tokens(cfg.batch_tokens, state.device)
    settings = typed(Settings, asked)
    source, transform = cfg.embed_source, cfg.embed_transform
    return Request(
        model=typed(ModelSpec, cfg.model, "model."),
        data=typed(DataSpec, cfg.data, "data."),
        settings=settings,
        dtype=choose_dtype(settings.dtype, state.device),
        source=Component(source.name, plain(source.dials)),
        transform=Component(transform.name, plain(transform.dials)),
        passage=cfg.control != "empty",
        first=first,
    )


def plain(node: Any) -> Any:
    """Return a node of a config as plain values, resolved."""
    return OmegaConf.to_container(node, resolve=True)
