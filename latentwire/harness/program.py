"""State of the running command: its tasks, its position in a sweep and its clock. Main entry: `current`.

`app.launch()` sets `current`; tasks and the sweeper use it.
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
    """The functions of a task as 'module:function'; a module is imported when its function is first called.

    Attributes:
        run: `run(cfg)` runs one configuration and returns its result.
        finish: `finish(cfg, results)` receives all results of a sweep.
        direct: `direct(cfg, jobs, compose)` decides which jobs of a sweep run. It is a generator that yields jobs,
            receives their results, and returns the final results. Without it, every job runs once.
    """

    run: str
    finish: str | None = None
    direct: str | None = None


@dataclass
class Program:
    """One command line: its entry, its tasks, its position in a sweep and its clock.

    Attributes:
        entry: Root of the config tree, `run` or `train`.
        tasks: Tasks of this entry, by name.
        position: Number of this job and number of all jobs of the sweep, such as (3, 35); None outside a sweep.
        lap_started: Monotonic time in seconds at which the command, or the current lap, began.
    """

    entry: str = "run"
    tasks: dict[str, Task] = field(default_factory=dict)
    position: tuple[int, int] | None = None
    lap_started: float = field(default_factory=time.monotonic)

    def lap(self, *, count: bool) -> float:
        """Return the seconds since the current lap began, including the time between jobs.

        Args:
            count: Whether to begin the next lap now, because a result records these seconds.
        """
        now = time.monotonic()
        seconds = now - self.lap_started
        if count:
            self.lap_started = now
        return seconds

    def finish(self, cfg: DictConfig, results: list[Any]) -> None:
        """Call the task's `finish` with the results of all jobs of a sweep."""
        name = self.tasks[cfg.task].finish
        if name is not None:
            load_function(name)(cfg, results)

    def direct(
        self, cfg: DictConfig, jobs: list[Any], compose: Callable[..., Any]
    ) -> Generator[list[Any], list[Any], list[Any]]:
        """Yield the jobs of each round of a sweep, receive their results, and return the final results."""
        task = self.tasks.get(cfg.task)
        if task is None or task.direct is None:
            return (yield jobs)
        return (yield from load_function(task.direct)(cfg, jobs, compose))

    def takes_sweeps(self, task: str) -> bool:
        """Return whether a preset makes several jobs of this task. It does not for task=analyze, which runs once."""
        return task == "list" or self.entry == "train" or (task in self.tasks and self.tasks[task].finish is not None)


current = Program()


def load_function(name: str) -> Callable[..., Any]:
    """Import and return the function called 'module:function'."""
    module, attribute = name.split(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return function


def command() -> str:
    """Return the command line of this run, quoted so that it can be typed again."""
    return shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])
