"""Run the jobs of a sweep in the workers of a Hydra launcher. Main entry: `launch_in_workers()`.

A launcher gets one job for each worker: a share of the sweep's jobs. A worker runs its share, then takes over jobs that
other workers have not begun. So a slow or dead worker delays nothing that another can do. Which worker runs a job is
decided by claims, see `latentwire.harness.ownership`.
"""

from __future__ import annotations

import contextlib
import os
import time
import traceback
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig

from latentwire.harness.errors import UserError, first_line
from latentwire.harness.grids import Job
from latentwire.harness.ownership import POLL, BusyError, deferring
from latentwire.harness.progress import log
from latentwire.harness.session import Session
from latentwire.harness.shares import divide
from latentwire.harness.worker_reports import ReportFolder, Watch, WorkerReport

REPORTS = "workers"  # folder of the reports and logs


@dataclass(frozen=True)
class Means:
    """What a worker may use of its machine.

    Attributes:
        threads: Threads of a worker; None: as many as its launcher gives it.
        devices: Accelerators of the machine that its workers divide; empty: as its launcher decides.
    """

    threads: int | None = None
    devices: tuple[str, ...] = ()

    @classmethod
    def of_this_machine(cls, workers: int) -> Means:
        """Return the means of each of several workers on this machine."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
        return cls(max(1, len(os.sched_getaffinity(0)) // workers), tuple(devices))

    def take(self, number: int) -> None:
        """Let this process, the worker with a number from 1, use its part."""
        if self.threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(self.threads)  # for processes that a job starts
            torch.set_num_threads(self.threads)
        if self.devices:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.devices[(number - 1) % len(self.devices)]


@dataclass(frozen=True)
class JobOutcome:
    """What became of a job in a worker: its result, or the error that stopped the worker."""

    place: int
    value: object = None
    error: str | None = None


@dataclass
class ShareFunction:
    """The function that a launcher calls in each worker, with the worker's number as the number of Hydra's job.

    It needs nothing of the process that made it.

    Attributes:
        session: A copy of the command's session.
        names: Name of each job.
        configs: Config of each job.
        shares: Places of the jobs of each worker.
        files: Folder of the reports.
        means: What a worker may use.
        maker: Number of the process that made it. A launcher with one worker may call it there.
    """

    session: Session
    names: list[str]
    configs: list[DictConfig]
    shares: list[list[int]]
    files: ReportFolder
    means: Means
    maker: int = field(default_factory=os.getpid)

    def __call__(self, cfg: DictConfig) -> list[JobOutcome]:
        """Run a worker's share, and what others leave of theirs, and return the outcomes."""
        own = int(HydraConfig.get().job.num)
        self.means.take(own + 1)
        report = WorkerReport(self.files, own + 1)
        with contextlib.nullcontext() if os.getpid() == self.maker else report.speaking():
            return list(self._outcomes(own, report))

    def _outcomes(self, own: int, report: WorkerReport) -> Iterator[JobOutcome]:
        """Yield the outcome of each job that this worker runs. An error in its own share ends it."""
        mine = self.shares[own]
        later = (
            []
            if self.session.task(self.configs[0]).divides_itself
            else [place for share in (*self.shares[own + 1 :], *self.shares[:own]) for place in reversed(share)]
        )
        over: set[int] = set()
        while True:
            before, looked = len(over), 0.0
            for place in (*mine, *later):
                if time.monotonic() - looked >= POLL:
                    over |= self._over_elsewhere(own)
                    looked = time.monotonic()
                if place in over:
                    continue
                outcome = self._run(place, report)
                if outcome is None:
                    continue  # another process is at work on it
                over.add(place)
                if outcome.error is None or place in mine:  # the error of another's job is left to that worker
                    yield outcome
                    if outcome.error is not None:
                        return
            if over.issuperset(mine):
                return
            if len(over) == before:
                time.sleep(POLL)

    def _over_elsewhere(self, own: int) -> set[int]:
        """Return the places of the jobs that other workers have finished."""
        reports = self.files.reports(len(self.shares))
        return {place for number, each in reports.items() if number != own + 1 for place in each["over"]}

    def _run(self, place: int, report: WorkerReport) -> JobOutcome | None:
        """Run a job and return its outcome, or None if another process is at work on it."""
        self.session.position = (place + 1, len(self.configs))
        report.begin(self.names[place])
        try:
            with deferring():
                value = self.session.run(self.configs[place])
        except BusyError:
            report.end(None)
            return None
        except Exception as error:  # reported by the process of the sweep
            expected = isinstance(error, UserError)
            log(f"error: {error}" if expected else traceback.format_exc())
            report.end(None)
            where = "" if expected else f"; the traceback is in {self.files.log(report.number)}"
            shown = str(error) if expected else f"{type(error).__name__}: {first_line(error)}"
            return JobOutcome(place, error=f"{shown}{where}")
        report.end(place, failed=isinstance(value, dict) and value.get("status") == "failed")
        return JobOutcome(place, value)


def launch_in_workers(
    launcher: Launcher, context: HydraContext, config: DictConfig, session: Session, jobs: Sequence[Job]
) -> list[object]:
    """Run jobs in the workers of a launcher, and return their results in order.

    Args:
        launcher: The launcher.
        context: Hydra's context of the command.
        config: Config of the sweep.
        session: Session of the command; its `workers` is the number of workers.
        jobs: The jobs, with their composed configs.

    Raises:
        UserError: A job cannot run, or a worker died. Finished results are kept.
    """
    if not jobs:
        return []
    costs = session.costs([job.config for job in jobs])
    shares = divide(costs, session.workers)
    folder = Path(os.path.commonpath([Path(str(job.config.out)).expanduser().resolve() for job in jobs])) / REPORTS
    files = ReportFolder(folder, uuid.uuid4().hex[:8])
    names = [str(job.config.name) for job in jobs]
    means = Means.of_this_machine(len(shares)) if is_on_this_machine(config) else Means()
    function = ShareFunction(session, names, [job.config for job in jobs], shares, files, means)
    launcher.setup(hydra_context=context, task_function=function, config=config)
    folder.mkdir(parents=True, exist_ok=True)
    log(f"jobs: {len(jobs)}, workers: {len(shares)}; their logs are in {folder}")
    with Watch(files, len(shares), names, costs) as watch:
        try:
            returned = launcher.launch([[] for _ in shares], initial_job_idx=0)
            found = [outcome for each in returned for outcome in each.return_value]
        except Exception as error:
            raise UserError(
                f"a worker ended before its jobs ({type(error).__name__}: {first_line(error)}); {len(watch.over())} of "
                f"{len(jobs)} jobs are finished and kept, the logs are in {folder}; run the same command again to "
                "finish the rest"
            ) from error
    files.clean()
    return _merged(names, found)


def is_on_this_machine(config: DictConfig) -> bool:
    """Return whether the workers of a config's launcher are processes on this machine."""
    return str(config.hydra.launcher._target_).rpartition(".")[2] in ("JoblibLauncher", "LocalLauncher")


def _merged(names: Sequence[str], found: Sequence[JobOutcome]) -> list[object]:
    """Return the results of all jobs in order."""
    by_place = {outcome.place: outcome for outcome in sorted(found, key=lambda outcome: outcome.error is None)}
    errors = {outcome.error: names[place] for place, outcome in by_place.items() if outcome.error is not None}
    if errors:
        listed = "\n".join(f"  {name}: {error}" for error, name in errors.items())
        raise UserError(f"{len(by_place) - len(errors)} of {len(names)} jobs are finished and kept; others "
                        f"stopped:\n{listed}")  # fmt: skip
    return [by_place[place].value for place in range(len(names))]
