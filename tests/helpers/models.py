"""Specs of the models in conf/model."""

from __future__ import annotations

from omegaconf import OmegaConf

from latentwire.harness.paths import CONF
from latentwire.harness.typed_config import typed
from latentwire.lm.spec import ModelSpec


def model_spec(name: str) -> ModelSpec:
    """Return the spec of a model from its YAML file."""
    return typed(ModelSpec, OmegaConf.load(CONF / "model" / f"{name}.yaml").model)
