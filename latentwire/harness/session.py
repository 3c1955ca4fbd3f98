"""What the jobs of one command share, apart from their configs. Main entries: `Session`, `Task`."""

from __future__ import annotations

import functools
import importlib
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from omegaconf import DictConfig

from latentwire.harness.errors import UserError
from latentwire.harness.grids import Job
from latentwire.harness.plugins import load_plugins, plugin_names
from latentwire.harness.shares import Cost

_KEPT_HERE: dict[str, tuple[str, Any]] = {}  # what the sessions from other processes keep in this one
T = TypeVar("T")
R = TypeVar("R", covariant=True)


@dataclass(frozen=True)
class Task:
    """The functions of a task as 'module:function'; a module is imported when its function is first called.

    Attributes:
        run: `run(cfg, session)` runs one configuration and returns its result. `run(cfg)` does the same on its own, in
            any process.
        finish: `finish(cfg, results, session)` receives all results of a sweep.
        direct: `direct(cfg, jobs, compose, session)` decides which jobs of a sweep run. It is a generator that yields
            jobs, receives their results, and returns the final results. Without it, every job runs once.
        costs: `costs(cfgs)` returns the `Cost` of each job, by which a launcher's workers divide them. Without it, all
            jobs cost the same.
        divides_itself: Whether processes with the same config divide the work of one job, or a function of the config
            that returns it. Each worker of a launcher then runs the job.
        start_anew: `start_anew(cfg)` removes what force=true makes again. It is called once, before workers divide the
            job, which they run without force.
        takes_workers: Whether the task reads `workers` itself, so that it needs no launcher.
    """

    run: str
    finish: str | None = None
    direct: str | None = None
    costs: str | None = None
    divides_itself: bool | str = False
    start_anew: str | None = None
    takes_workers: bool = False


@dataclass
class Session:
    """One command: its tasks, its position in a sweep, its clock, and the objects that its jobs share.

    A session can be sent to another process. The shared objects stay behind and are built there again.

    Attributes:
        entry: Root of the config tree, `run` or `train`.
        tasks: Tasks of this entry, by name.
        command: Command line, quoted so that it can be typed again; "" if there is none.
        sweeping: Whether the jobs belong to a sweep.
        position: Number of this job and number of all jobs of the sweep, such as (3, 35); None outside a sweep.
        lap_started: Monotonic time in seconds at which the command, or the current lap, began.
        remote: Whether this is a copy in another process.
        workers: Number of processes among which the sweep's launcher divides the jobs; 1: they run in this process.
    """

    entry: str = "run"
    tasks: dict[str, Task] = field(default_factory=dict)
    command: str = ""
    sweeping: bool = False
    position: tuple[int, int] | None = None
    lap_started: float = field(default_factory=time.monotonic)
    remote: bool = False
    workers: int = 1
    _kept: dict[str, tuple[str, Any]] = field(default_factory=dict, repr=False)  # purpose -> (key, object)

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "remote": True, "_kept": {}}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self.lap_started = time.monotonic()  # clocks of two processes do not compare
        self._kept = _KEPT_HERE  # a launcher's worker takes several shares, one after the other

    def run(self, cfg: DictConfig) -> object:
        """Run the task of a config and return its result.

        Raises:
            UserError: This entry does not have the task.
        """
        return load_function(self.task(cfg).run)(cfg, self)

    def task(self, cfg: DictConfig) -> Task:
        """Return the task of a config.

        Raises:
            UserError: This entry does not have it.
        """
        if cfg.task not in self.tasks:
            raise UserError(f"task={cfg.task}: not a task of {self.entry}.py; use one of {', '.join(self.tasks)}")
        return self.tasks[cfg.task]

    def keep(self, purpose: str, key: str, build: Callable[[], T]) -> T:
        """Return the object that jobs share for a purpose; build it anew if the last one had another key.

        Args:
            purpose: What the object is for. Only the newest object of a purpose is kept.
            key: Everything that decides the object, as text.
            build: Returns a new object.
        """
        if purpose not in self._kept or self._kept[purpose][0] != key:
            self._kept.pop(purpose, None)  # frees the memory of the old object before the new one is built
            self._kept[purpose] = (key, build())
        kept: T = self._kept[purpose][1]
        return kept

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

    def finish(self, cfg: DictConfig, results: list[object]) -> None:
        """Call the task's `finish` with the results of all jobs of a sweep."""
        name = self.tasks[cfg.task].finish
        if name is not None:
            load_function(name)(cfg, results, self)

    def direct(
        self, cfg: DictConfig, jobs: list[Job], compose: Callable[[Sequence[str]], Job]
    ) -> Generator[list[Job], list[object], list[object]]:
        """Yield the jobs of each round of a sweep, receive their results, and return the final results."""
        task = self.tasks.get(cfg.task)
        if task is None or task.direct is None:
            return (yield jobs)
        results: list[object] = yield from load_function(task.direct)(cfg, jobs, compose, self)
        return results

    def costs(self, cfgs: Sequence[DictConfig]) -> list[Cost]:
        """Return the cost of each job of a sweep."""
        name = self.tasks[cfgs[0].task].costs
        if name is None:
            return [Cost() for _ in cfgs]
        costs: list[Cost] = load_function(name)(cfgs)
        return costs

    def divides(self, cfg: DictConfig) -> bool:
        """Return whether processes with the config of a job divide its work."""
        how = self.task(cfg).divides_itself
        return bool(load_function(how)(cfg)) if isinstance(how, str) else how

    def start_anew(self, cfg: DictConfig) -> None:
        """Remove what force=true makes again, before workers divide the work of a job."""
        name = self.task(cfg).start_anew
        assert name is not None, f"task={cfg.task} divides itself, so it says how force=true begins"
        load_function(name)(cfg)

    def folder(self, cfg: DictConfig) -> Path:
        """Return the folder of a job's results; for a task that writes files, the folder of the files."""
        given = cfg.get("folder") if self.entry == "run" else None  # in train.py it is the folder of the inputs
        path = Path(str(given or cfg.get("out") or "outputs")).expanduser().resolve()
        return path.parent if path.suffix and not path.is_dir() else path

    def takes_sweeps(self, task: str) -> bool:
        """Return whether a preset makes several jobs of this task. It does not for task=analyze, which runs once."""
        return task == "list" or self.entry == "train" or (task in self.tasks and self.tasks[task].finish is not None)


class JobOf(Protocol[R]):
    """A function of a config and, in a sweep, its session."""

    def __call__(self, cfg: DictConfig, session: Session | None = None) -> R:
        """Run the job of a config and return its result."""


def job(function: Callable[[DictConfig, Session | None], T]) -> JobOf[T]:
    """Return a task's function as a job that needs nothing but its config, in any process: it imports its plugins.

    Within a command, `launch` has imported them.
    """

    @functools.wraps(function)
    def run(cfg: DictConfig, session: Session | None = None) -> T:
        if session is None or session.remote:
            load_plugins(plugin_names(cfg.get("plugins", [])))
        return function(cfg, session)

    return run


def load_function(name: str) -> Callable[..., Any]:
    """Import and return the function called 'module:function'."""
    module, attribute = name.split(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return function
