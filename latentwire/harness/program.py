"""The program that runs: its tasks, its place in a sweep and its clock.

`launch()` in app.py fills `current`; jobs and the sweeper read it.
"""

from __future__ import annotations

import importlib
import shlex
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig


@dataclass(frozen=True)
class Task:
    """A job by the name of its function, 'module:function', which is imported when the job runs.

    `run(cfg)` does one configuration and returns its result. `finish(cfg, results)` receives all results of a sweep.
    `direct(cfg, jobs, compose)` decides what a sweep runs: a generator that yields jobs, is sent their results, and
    returns the results to finish with. Without it all jobs run once.
    """

    run: str
    finish: str | None = None
    direct: str | None = None


@dataclass
class Program:
    """One command: its entry, the tasks of that entry, the position in the sweep and the time since the last result.

    Attributes:
        entry: Root of the config tree, `run` or `train`.
        tasks: The jobs of this entry by name.
        position: Number of this job and of all jobs in the sweep, such as (3, 35); None outside a sweep.
        counted: Time in seconds at which the command began, or at which a result last counted its seconds.
    """

    entry: str = "run"
    tasks: dict[str, Task] = field(default_factory=dict)
    position: tuple[int, int] | None = None
    counted: float = field(default_factory=time.monotonic)

    def lap(self, *, count: bool) -> float:
        """Return the seconds since a result last counted them, with all that happened in between.

        Args:
            count: Whether a result now counts these seconds; the next lap then begins here.
        """
        now = time.monotonic()
        seconds = now - self.counted
        if count:
            self.counted = now
        return seconds

    def finish(self, cfg: DictConfig, results: list[Any]) -> None:
        """Hand the results of all jobs of a sweep to its task."""
        name = self.tasks[cfg.task].finish
        if name is not None:
            load_function(name)(cfg, results)

    def direct(
        self, cfg: DictConfig, jobs: list[Any], compose: Callable[..., Any]
    ) -> Generator[list[Any], list[Any], list[Any]]:
        """Run a sweep round by round: yield the jobs of a round, receive their results, return the final results."""
        task = self.tasks.get(cfg.task)
        if task is None or task.direct is None:
            return (yield jobs)
        return (yield from load_function(task.direct)(cfg, jobs, compose))

    def takes_sweeps(self, task: str) -> bool:
        """Tell whether a preset multiplies this task; task=analyze reads a sweep once, so it does not."""
        return task == "list" or self.entry == "train" or (task in self.tasks and self.tasks[task].finish is not None)


current = Program()


def load_function(name: str) -> Callable[..., Any]:
    """Import the function that 'module:function' names."""
    module, function = name.split(":")
    job: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return job


def command() -> str:
    """Return the command line of this run, as it could be typed again."""
    return shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])
