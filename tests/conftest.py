"""Fixtures that several test files use: models, loaded once, and the command line."""

from __future__ import annotations

import logging
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's client is imported: no test waits for a network
# The same device and dtype on every machine, unless the environment names others.
os.environ.setdefault("LATENTWIRE_DEVICE", "cpu")
os.environ.setdefault("LATENTWIRE_DTYPE", "float32")

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# PyTorch and the models are imported where they are used: the process that hands out the tests needs neither.
if TYPE_CHECKING:
    from latentwire.lm.models import LanguageModel
    from latentwire.lm.vocabulary import Vocabulary

CommandLine = Callable[..., tuple[int, str, str]]


def load_embedded(name: str) -> LanguageModel:
    """Load a model of conf/model on the CPU in float32."""
    import torch

    from latentwire.lm.models import load_model
    from tests.helpers.models import model_spec

    return load_model(model_spec(name), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def tiny() -> LanguageModel:
    """Two layers of random weights."""
    return load_embedded("tiny_random")


@pytest.fixture(scope="session")
def smollm2() -> LanguageModel:
    """The embedded model; fetched once."""
    return load_embedded("smollm2")


@pytest.fixture(scope="session")
def vocabulary(tiny: LanguageModel) -> Vocabulary:
    """The vocabulary of the tiny model."""
    from latentwire.lm.vocabulary import Vocabulary

    return Vocabulary(tiny.token_embeddings())


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread, because a second one only slows down small tensors; TEST_THREADS sets another number."""
    import torch

    from tests.helpers.programs import THREADS

    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def torch_seed() -> None:
    """Seed PyTorch's own generator before every test, so that no test depends on the ones before it."""
    import torch

    from tests.helpers.random import shifted

    torch.manual_seed(shifted(0))


@pytest.fixture(autouse=True)
def logging_state() -> Iterator[None]:
    """Take away what a command adds to the logging of the process: its handlers write into a captured stream."""
    loggers = [logging.getLogger(), logging.getLogger("hydra")]
    before = [(logger, list(logger.handlers), logger.level) for logger in loggers]
    yield
    for logger, handlers, level in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    """Run a command line of "run" or "train" in tmp_path; returns exit status, standard output, standard error."""
    from tests.helpers.programs import USERS, launch

    monkeypatch.chdir(tmp_path)
    for name in USERS:
        monkeypatch.delenv(name, raising=False)
    return lambda name, *arguments: launch(name, arguments, monkeypatch, capfd)


@pytest.fixture
def cli(entry: CommandLine) -> CommandLine:
    """Run a command line of run.py in tmp_path; returns exit status, standard output and standard error."""
    return partial(entry, "run")


@pytest.fixture
def trains(entry: CommandLine) -> CommandLine:
    """Run a command line of train.py in tmp_path; returns exit status, standard output and standard error."""
    return partial(entry, "train")


@pytest.fixture
def logged_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run W&B without a login or the user's settings, with all its files in the test's folder."""
    import wandb

    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    wandb.teardown()  # W&B keeps a login that an earlier test gave it
