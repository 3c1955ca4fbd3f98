"""What several test files share: models, loaded once, and the command line."""

from __future__ import annotations

import os
import sys

from latentwire.harness import program

os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's client is imported: no test waits for a network
# Figures are compared to the bit here and there: the same device and dtype wherever tests run, unless one is named.
os.environ.setdefault("LATENTWIRE_DEVICE", "cpu")
os.environ.setdefault("LATENTWIRE_DTYPE", "float32")

import pytest
import torch
from omegaconf import OmegaConf

from latentwire.harness import app
from latentwire.harness.paths import CONF
from latentwire.harness.typed_config import typed
from latentwire.lm.models import LanguageModel, load_model
from latentwire.lm.spec import ModelSpec
from run import TASKS


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


@pytest.fixture
def cli(tmp_path, monkeypatch, capfd):
    """Run a command line in tmp_path; return exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run.py"])
    for name in ("MODEL_ID", "SAMPLES", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        program.current.position = None
        status = 0
        try:
            app.launch("run", TASKS, list(arguments))
        except SystemExit as stop:
            status = int(stop.code or 0)
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return run
