"""Run the jobs of a sweep in the workers of a Hydra launcher. Main entry: `launch_in_workers()`.

A launcher gets one job for each worker: a share of the sweep's jobs. A worker runs its share, then takes over jobs that
other workers have not begun. So a slow or dead worker delays nothing that another can do. Which worker runs a job is
decided by claims, see `latentwire.harness.ownership`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import signal
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig

from latentwire.harness.claims import claimed
from latentwire.harness.errors import UserError, first_line
from latentwire.harness.grids import Job
from latentwire.harness.ownership import POLL, BusyError, deferring
from latentwire.harness.progress import log
from latentwire.harness.session import Session
from latentwire.harness.shares import divide
from latentwire.harness.worker_counts import ON_THIS_MACHINE
from latentwire.harness.worker_reports import INTERVAL, ReportFolder, Watch, WorkerReport, describe_running

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
        return cls(max(1, torch.get_num_threads() // workers), tuple(devices))

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
        takes_over: Whether a worker also runs jobs that other workers have not begun. It needs a file system with
            locks.
        maker: Number of the process that made it. A launcher with one worker may call it there.
        place: Working folder of that process. A worker that served another command has another one.
    """

    session: Session
    names: list[str]
    configs: list[DictConfig]
    shares: list[list[int]]
    files: ReportFolder
    means: Means
    takes_over: bool
    maker: int = field(default_factory=os.getpid)
    place: str = field(default_factory=os.getcwd)

    def __call__(self, cfg: DictConfig) -> list[JobOutcome]:
        """Run a worker's share, and what others leave of theirs, and return the outcomes."""
        os.chdir(self.place)
        number = int(HydraConfig.get().job.num) + 1
        if os.getppid() == self.maker:
            _end_with(self.maker)
        self.means.take(number)
        report = WorkerReport(self.files, number)
        with contextlib.nullcontext() if os.getpid() == self.maker else report.speaking():
            return list(self._outcomes(report))

    def _outcomes(self, report: WorkerReport) -> Iterator[JobOutcome]:
        """Yield the outcome of each job that this worker runs. An error in its own share ends it."""
        mine, over, awaited = self.shares[report.number - 1], set[int](), ""
        while True:
            over |= self._over_elsewhere(report.number)
            before, busy = len(over), ""
            for place in (*mine, *self._of_others(report.number)):
                if place in over:
                    continue
                try:
                    outcome = self._run_once(place, report)
                except BusyError as error:  # another command is at work on it
                    busy = str(error)
                    continue
                if outcome is None:
                    continue
                over.add(place)
                if outcome.error is None or place in mine:  # the error of another's job is left to that worker
                    yield outcome
                    if outcome.error is not None:
                        return
            if over.issuperset(mine):
                return
            if len(over) == before:
                if busy != awaited:
                    log(f"waiting: {busy}")
                    awaited = busy
                time.sleep(POLL)

    def config_again(self, place: int) -> DictConfig:
        """Return the config of a job that this launch has finished: force=true does not apply again."""
        config = copy.deepcopy(self.configs[place])
        if "force" in config:
            config.force = False
        return config

    def _of_others(self, number: int) -> list[int]:
        """Return the jobs of other workers that this one may take over, beginning with what each would do last."""
        if not self.takes_over:
            return []
        return [place for share in (*self.shares[number:], *self.shares[: number - 1]) for place in reversed(share)]

    def _over_elsewhere(self, number: int) -> set[int]:
        """Return the places of the jobs that the other workers have finished."""
        reports = self.files.reports(len(self.shares))
        return {place for other, each in reports.items() if other != number for place in each["over"]}

    def _run_once(self, place: int, report: WorkerReport) -> JobOutcome | None:
        """Run a job, unless another worker of this launch runs it or has run it; return None then.

        Raises:
            BusyError: A process of another command is at work on it.
        """
        if not self.takes_over:
            return self._run(place, report)
        with claimed(self.files.claims, str(place)) as is_mine:  # until its end is in the report
            return self._run(place, report) if is_mine and place not in self._over_elsewhere(report.number) else None

    def _run(self, place: int, report: WorkerReport) -> JobOutcome:
        """Run a job and return its outcome.

        Raises:
            BusyError: A process of another command is at work on it.
        """
        self.session.position = (place + 1, len(self.configs))
        config = self.config_again(place) if place in report.earlier else self.configs[place]
        report.begin(self.names[place])
        try:
            with deferring():
                value = self.session.run(config)
        except BusyError:
            report.end(None)
            raise
        except Exception as error:  # reported by the process of the sweep
            expected = isinstance(error, UserError)
            log(f"error: {error}" if expected else traceback.format_exc())
            report.end(None)
            where = "" if expected else f"; the traceback is in {self.files.log(report.number)}"
            shown = str(error) if expected else f"{type(error).__name__}: {first_line(error)}"
            return JobOutcome(place, error=f"{shown}{where}")
        report.end(place, failed=isinstance(value, dict) and value.get("status") == "failed")
        return JobOutcome(place, value)


@functools.cache
def _end_with(parent: int) -> None:
    """End this process soon after its parent, which the launcher's processes would outlive."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(INTERVAL)
        os.kill(os.getpid(), signal.SIGKILL)  # as its parent: what it was doing is done again

    threading.Thread(target=watch, daemon=True).start()


def launch_in_workers(
    launcher: Launcher, context: HydraContext, config: DictConfig, session: Session, jobs: Sequence[Job]
) -> list[object]:
    """Run jobs in the workers of a launcher, and return their results in order.

    Finished jobs need no worker: this process reads their results.

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
    names, configs = [str(job.config.name) for job in jobs], [job.config for job in jobs]
    costs = session.costs(configs)
    results: dict[int, object] = {}
    for place in (place for place, cost in enumerate(costs) if not cost.seconds):
        session.position = (place + 1, len(jobs))
        results[place] = session.run(configs[place])
    left = [place for place in range(len(jobs)) if place not in results]
    if not left:
        return list(results.values())
    shares = [[left[place] for place in share] for share in divide([costs[place] for place in left], session.workers)]
    folder = Path(os.path.commonpath([session.folder(one) for one in configs])) / REPORTS
    files = ReportFolder(folder, uuid.uuid4().hex[:8])
    means = Means.of_this_machine(len(shares)) if is_on_this_machine(config) else Means()
    takes_over = files.has_locks() and not all(session.divides(one) for one in configs)
    function = ShareFunction(session, names, configs, shares, files, means, takes_over)
    launcher.setup(hydra_context=context, task_function=function, config=config)
    found = _outcomes(launcher, function, Watch(files, len(shares), names, costs, set(results)))
    outcomes = [*(JobOutcome(place, value) for place, value in results.items()), *found]
    return _merged(names, outcomes, lambda place: session.run(function.config_again(place)))


def _outcomes(launcher: Launcher, function: ShareFunction, watch: Watch) -> list[JobOutcome]:
    """Return what became of the jobs of all workers.

    Without an outcome are jobs that other workers finished while a worker died: their results are stored.

    Raises:
        UserError: A worker died and jobs are left, or the launcher failed.
    """
    files, workers = function.files, len(function.shares)
    log(f"jobs: {sum(map(len, function.shares))}, workers: {workers}; their logs are in {files.folder}")
    found: list[JobOutcome] = []
    with watch, _watched(launcher, watch):
        try:
            returned = launcher.launch([[] for _ in range(workers)], initial_job_idx=0)
            found = [outcome for each in returned for outcome in each.return_value]
        except Exception as error:
            shown, reports = f"{type(error).__name__}: {first_line(error)}", files.reports(workers)
            if not reports:
                raise UserError(f"the launcher started no worker ({shown}); check its settings") from error
            ended = [f"worker {number} ({describe_running(reports[number])})" for number in files.died(workers)]
            what = f"{' and '.join(ended) or 'a worker'} ended before its jobs ({shown})"
            if not watch.is_over():
                raise UserError(
                    f"{what}; {len(watch.over())} of {len(function.names)} jobs are finished and kept; "
                    f"{_going_on(files, workers)}the logs are in {files.folder}; run the same command again to finish "
                    "the rest"
                ) from error
            log(f"note: {what}; the other workers finished its jobs")
        except KeyboardInterrupt:
            if going_on := _going_on(files, workers):
                log(f"note: {going_on}the same command shares the rest with them")
            raise
    files.clean()
    return found


def _watched(launcher: Launcher, watch: Watch) -> contextlib.AbstractContextManager[None]:
    """Return a block that watches the tasks of a launcher in the queue of its cluster."""
    if type(launcher).__name__ != "SlurmLauncher":
        return contextlib.nullcontext()
    from latentwire.harness.slurm_queue import watched_tasks  # imports a package that other launchers do not need

    return watched_tasks(watch.is_over)


def _going_on(files: ReportFolder, workers: int) -> str:
    """Return which workers go on without this process, with a semicolon at the end; "" for none."""
    names = [f"worker {number} ({describe_running(report)})" for number, report in files.going_on(workers).items()]
    return f"{' and '.join(names)} may still run; " if names else ""


def is_on_this_machine(config: DictConfig) -> bool:
    """Return whether the workers of a config's launcher are processes on this machine."""
    return str(config.hydra.launcher._target_).rpartition(".")[2] in ON_THIS_MACHINE


def _merged(names: Sequence[str], found: Sequence[JobOutcome], stored: Callable[[int], object]) -> list[object]:
    """Return the results of all jobs in order.

    Args:
        names: Name of each job.
        found: What became of jobs.
        stored: Returns the stored result of a job that is not among them.

    Raises:
        UserError: An error stopped workers.
    """
    by_place = {outcome.place: outcome for outcome in sorted(found, key=lambda outcome: outcome.error is None)}
    errors = {outcome.error: names[place] for place, outcome in by_place.items() if outcome.error is not None}
    kept = f"{sum(outcome.error is None for outcome in by_place.values())} of {len(names)} jobs are finished and kept"
    if len(errors) == 1:
        ((error, name),) = errors.items()
        raise UserError(f"{name}: {error} ({kept})")
    if errors:
        listed = "\n".join(f"  {name}: {error}" for error, name in errors.items())
        raise UserError(f"{kept}; others stopped:\n{listed}")
    return [by_place[place].value if place in by_place else stored(place) for place in range(len(names))]
