"""Run run.py and train.py: inside the test's process, or as processes of their own that a test may kill.

Main entries: `launch()` in this process, `start()` in a forked one. `command()` is the real command line.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

import run
import train
from latentwire.harness import app
from tests.helpers.paths import ROOT

TASKS = {"run": run.TASKS, "train": train.TASKS}
THREADS = int(os.environ.get("TEST_THREADS", "1"))  # of each program, and of tests that use `one_thread`
USERS = ("MODEL_ID", "SAMPLES", "HYDRA_FULL_ERROR")  # environment variables that change a run


def launch(
    entry: str, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Run a command line of an entry, "run" or "train", in this process.

    Returns:
        Exit status, standard output and standard error.
    """
    monkeypatch.setattr(sys, "argv", [f"{entry}.py"])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    status = 0
    try:
        app.launch(entry, TASKS[entry], list(arguments))
    except SystemExit as stop:
        status = int(stop.code or 0)
    captured = capfd.readouterr()
    return status, captured.out, captured.err


def command(entry: str, *arguments: str) -> list[str]:
    """Return the command line that starts an entry."""
    return [sys.executable, str(ROOT / f"{entry}.py"), *arguments]


def environment() -> dict[str, str]:
    """Return the environment of a child process: this checkout, one thread, none of the user's settings."""
    kept = {name: value for name, value in os.environ.items() if name not in USERS}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(THREADS)}


@dataclass
class Started:
    """A program that runs in one or more processes.

    Args:
        processes: One for each rank.
        log: The file with what they print.
    """

    processes: list[BaseProcess]
    log: Path

    def told(self) -> str:
        """Return what the processes printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def running(self) -> bool:
        """Tell whether any process still runs."""
        return any(process.is_alive() for process in self.processes)

    def kill(self) -> None:
        """Send SIGKILL to every process."""
        for process in self.processes:
            process.kill()

    def kill_when(self, reached: Callable[[], bool], pause: float = 0.0, timeout: float = 120.0) -> None:
        """Wait until `reached` is true and `pause` seconds more, then send SIGKILL.

        Raises:
            AssertionError: The program ended or the time passed before.
        """
        deadline = time.monotonic() + timeout
        while not reached():
            assert self.running(), self.told()
            assert time.monotonic() < deadline, self.told()
            time.sleep(0.001)
        time.sleep(pause)
        self.kill()
        assert self.wait() == [-signal.SIGKILL] * len(self.processes), self.told()

    def wait(self, timeout: float = 280.0) -> list[int | None]:
        """Wait for the end and return the exit statuses; -N means signal N."""
        for process in self.processes:
            process.join(timeout)
        return [process.exitcode for process in self.processes]


def start(
    entry: str, *arguments: str, folder: Path, ranks: int = 1, before: Callable[[], None] | None = None
) -> Started:
    """Start an entry in processes of its own.

    The processes are forked from one that has imported everything, which takes milliseconds where
    `python train.py` takes seconds.

    Args:
        entry: "run" or "train".
        arguments: The command line.
        folder: Working folder of the processes.
        ranks: Number of processes; with several, each finds the others as under `torchrun`.
        before: A function of a test module, called in each process before the program starts.
    """
    (folder / "told.txt").touch()
    port = _free_port() if ranks > 1 else 0
    own = {"OMP_NUM_THREADS": str(THREADS)}
    started = Started([], folder / "told.txt")
    for rank in range(ranks):
        if ranks > 1:
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
            own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | {k: str(v) for k, v in names.items()}
        process = _server().Process(
            target=_run, args=(entry, arguments, str(folder), dict(os.environ) | own, before), daemon=True
        )
        process.start()
        started.processes.append(process)
    return started


@cache
def _server() -> ForkServerContext:
    """Start the process that imports the program once and is forked for every run."""
    context = multiprocessing.get_context("forkserver")
    modules = {
        word.split(":")[0]
        for tasks in TASKS.values()
        for task in tasks.values()
        for word in vars(task).values()
        if isinstance(word, str)
    }
    context.set_forkserver_preload(["tests.helpers.programs", *sorted(modules)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # before torch is imported: a process with threads cannot be forked
        patch.setenv("PYTHONPATH", str(ROOT))
        multiprocessing.forkserver.ensure_running()  # type: ignore[attr-defined]
    return context


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def _run(
    entry: str, arguments: tuple[str, ...], folder: str, variables: dict[str, str], before: Callable[[], None] | None
) -> None:
    """Be the program: in its folder, with its own environment, printing into a file of that folder."""
    os.setsid()
    os.chdir(folder)
    with Path("told.txt").open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update({name: value for name, value in variables.items() if name not in USERS})
    torch.set_num_threads(THREADS)
    sys.argv = [f"{entry}.py"]
    if before:
        before()
    app.launch(entry, TASKS[entry], list(arguments))
