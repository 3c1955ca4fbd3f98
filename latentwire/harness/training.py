"""The loop of every training task: resume, steps, evaluations, checkpoints, journal and result. Main entry: `train()`.

A task supplies a `TrainingJob`: what identifies the run, and how its `Learning` is built. `Learning` does one step,
evaluates, and makes the result. Everything else is here, once. A finished run is not trained again. A killed run
resumes at its last checkpoint with the same numbers. If memory runs out, the message names the settings to lower.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from accelerate import Accelerator, PartialState
from omegaconf import DictConfig

from latentwire.harness.checkpoint import State
from latentwire.harness.device import accelerator_state
from latentwire.harness.memory import within_memory
from latentwire.harness.optimization import make_accelerator
from latentwire.harness.ownership import owned
from latentwire.harness.progress import Progress, log
from latentwire.harness.results import JsonObject, write_json
from latentwire.harness.run import Metrics, Run, RunSpec, Stateful, Timings

R = TypeVar("R", bound=Mapping[str, object])


@dataclass(frozen=True)
class StepReport:
    """What one step reports."""

    metrics: Metrics  # reproducible numbers, for metrics.jsonl
    timings: Timings  # seconds and rates, for timings.jsonl
    status: str  # for the progress bar: 'loss 0.412'
    units: int = 1  # finished units of work, see `Learning.units`


class Learning(ABC, Generic[R]):
    """What a run trains. A task's subclass loads its data and models in `__init__`, after the check for a finished run.

    Attributes:
        run: Folder and settings of the run.
        steps: Number of steps of the whole run.
        learner: Parts that change in training, by their keys in a checkpoint.
        files: JSONL files that the run appends to, besides its journal. Resuming cuts them back.
    """

    steps: int
    learner: Mapping[str, Stateful]
    files: tuple[str, ...] = ()

    def __init__(self, run: Run) -> None:
        self.run = run

    @property
    def state(self) -> PartialState:
        """Device and processes of the run."""
        return self.run.state

    @property
    def last_step(self) -> int:
        """The step at which this command stops; `steps` unless the task may stop earlier and resume."""
        return self.steps

    @property
    def stop_reason(self) -> str | None:
        """Why the run stops before `last_step`, as after early stopping; None if it goes on."""
        return None

    def units(self, first: int, last: int) -> int:
        """Return the units of work of the steps from `first` to `last`, for the progress bar."""
        return last - first + 1

    def saved_values(self) -> State:
        """Return what a checkpoint holds besides the learner."""
        return {}

    def restore_values(self, saved: State) -> None:
        """Take over the `saved_values` of a checkpoint."""

    def begin(self, done: int) -> None:
        """Do what comes before the first step of this command, `done` steps being finished."""

    @abstractmethod
    def step(self, number: int) -> StepReport:
        """Do step `number`, counted from 1."""

    def validate(self, number: int) -> Metrics | None:
        """Return what an evaluation after a step adds to its metrics; None if none is due. It forces a checkpoint."""
        return None

    def before_checkpoint(self) -> None:
        """Write what belongs to a checkpoint, in the main process. A killed run writes it again."""

    @abstractmethod
    def finish(self) -> R:
        """Save what was trained, and return the fields of result.json that the task adds to `Run.about`."""

    @abstractmethod
    def report(self, result: R) -> Mapping[str, float]:
        """Print the result in the main process, and return the numbers for the tracker's summary."""


@dataclass(frozen=True)
class TrainingJob(Generic[R]):
    """A training run, known before any data or model is loaded.

    Attributes:
        cfg: Config of the run.
        spec: Settings that every run has.
        identity: Settings and inputs that decide the result.
        sizes: Settings that decide the memory, with their values, for the message when it runs out.
        product: Word for what is trained, and its folder in the run's: ("policy", "model").
        build: Loads data and models.
        covers: Whether a finished result is as far as this command goes.
    """

    cfg: DictConfig
    spec: RunSpec
    identity: JsonObject
    sizes: Mapping[str, object]
    product: tuple[str, str]
    build: Callable[[Run], Learning[R]]
    covers: Callable[[JsonObject], bool] = field(default=lambda result: True)


def accelerator_of(cfg: DictConfig) -> Accelerator:
    """Return the device, processes and precision that a config names."""
    return make_accelerator(cfg.device, cfg.dtype)


def train(job: TrainingJob[R]) -> JsonObject:
    """Train, or continue a run that was interrupted, or return the result of a finished one.

    Returns:
        The content of result.json, in every process.

    Raises:
        BusyError: Another process trains in this folder; see `latentwire.harness.ownership.owned`.
        UserError: The folder holds a run of another configuration, a loss or gradient is not finite, memory runs out,
            or the disk is full.
    """
    run = Run(job.cfg, job.spec, job.identity, accelerator_state(job.cfg.device))
    word, folder = job.product
    found = None if job.spec.force else run.finished()
    if found is None or not job.covers(found):
        with owned(run.folder, "run", run.state), within_memory(run.state.device, job.sizes):
            found = run.finished()  # another process may have finished it by now
            if found is None or not job.covers(found):
                return _train(run, job.build(run))
    log(f"{word}: {run.folder / folder}  (finished before; force=true trains it anew)")
    return found


def _train(run: Run, learning: Learning[R]) -> JsonObject:
    """Do the remaining steps, and write the result."""
    started = time.perf_counter()
    done, saved = run.begin(learning.learner, learning.steps, *learning.files)
    if saved:
        run.restore("the run", lambda: learning.restore_values(saved))
    learning.begin(done)
    last = learning.last_step
    with Progress(f"{run.cfg.task} {run.cfg.name}", max(1, learning.units(done + 1, last))) as progress:
        for number in range(done + 1, last + 1):
            if (reason := learning.stop_reason) is not None:
                log(f"stopped: {reason}")
                break
            report = learning.step(number)
            evaluated = learning.validate(number)
            run.log(number, {**report.metrics, **(evaluated or {})}, report.timings)
            if run.is_due(number) or evaluated is not None:
                learning.before_checkpoint()
                run.save(number, learning.learner, learning.saved_values())
            progress.advance(report.units, report.status)
    own = learning.finish()
    result = {**own, "time_sec": round(time.perf_counter() - started, 3), **run.about()}
    summary: Mapping[str, float] = {}
    if run.state.is_main_process:
        write_json(run.folder / "result.json", result)
        summary = learning.report(own)
    return run.end(result, summary)
