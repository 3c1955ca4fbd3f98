"""Models that several test files share, loaded once."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's client is imported: no test waits for a network

import pytest
import torch
from omegaconf import OmegaConf

from latentwire.harness.app import CONF, typed
from latentwire.models import LanguageModel, ModelSpec, load_model


def model_spec(name: str) -> ModelSpec:
    """The spec of a model as its YAML has it."""
    return typed(ModelSpec, OmegaConf.load(CONF / "model" / f"{name}.yaml").model)


@pytest.fixture(scope="session")
def tiny() -> LanguageModel:
    """Two layers of random weights."""
    return load_model(model_spec("tiny_random"), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def smollm2() -> LanguageModel:
    """The embedded model; fetched once."""
    return load_model(model_spec("smollm2"), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def one_thread():
    """For tensors so small that they only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
