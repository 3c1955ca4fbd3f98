"""Run run.py and train.py: inside the test's process, or as processes of their own."""

from __future__ import annotations

import os
import sys

import pytest

import run
import train
from latentwire.harness import app, program
from tests.helpers.paths import ROOT

TASKS = {"run": run.TASKS, "train": train.TASKS}
USERS = ("MODEL_ID", "SAMPLES", "HYDRA_FULL_ERROR")  # environment variables with which a user changes a run


def launch(
    entry: str, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Run a command line of an entry, "run" or "train", in this process.

    Returns:
        Exit status, standard output and standard error.
    """
    monkeypatch.setattr(sys, "argv", [f"{entry}.py"])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    program.current.position = None
    status = 0
    try:
        app.launch(entry, TASKS[entry], list(arguments))
    except SystemExit as stop:
        status = int(stop.code or 0)
    captured = capfd.readouterr()
    return status, captured.out, captured.err


def command(entry: str, *arguments: str, processes: int = 1) -> list[str]:
    """Return the command line that starts an entry, in several processes if wanted."""
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [sys.executable, *(several if processes > 1 else []), str(ROOT / f"{entry}.py"), *arguments]


def environment() -> dict[str, str]:
    """Return the environment of a child process: this checkout, one thread, none of the user's settings."""
    kept = {name: value for name, value in os.environ.items() if name not in USERS}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
