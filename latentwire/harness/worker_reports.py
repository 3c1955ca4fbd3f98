"""What the workers of a launcher tell the process of the sweep, through files in a folder that all see.

Main entries: `WorkerReport` in a worker, `Watch` in the process of the sweep.

Each worker has a report, LAUNCH.NUMBER.json, with what it has done and what it runs, and a log, NUMBER.log.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, TypedDict, cast

import psutil
from tqdm import tqdm

from latentwire.harness.claims import NoLocksError, Owner, claimed
from latentwire.harness.progress import PLAIN_INTERVAL, heard_by, log, may_speak
from latentwire.harness.results import DamagedResultError, read_json, write_json, writing
from latentwire.harness.shares import Cost

INTERVAL = 1.0  # seconds between two looks at the reports, and between two reports of progress within a job
OUTDATED = 24 * 3600  # reports of killed sweeps are removed after this many seconds without a change


class Report(TypedDict):
    """The content of a worker's report."""

    host: str
    pid: int
    over: list[int]  # places of the jobs that this worker has finished, with or without success
    failed: list[int]
    running: str | None  # name of the job that runs now
    done: int  # its examples that are done
    total: int  # all its examples; 0 if it has not begun them


@dataclass(frozen=True)
class ReportFolder:
    """The reports and logs of one launch.

    Attributes:
        folder: Folder of the files.
        launch: Name of the launch: workers of an earlier one may still write into the folder.
    """

    folder: Path
    launch: str

    def report(self, number: int) -> Path:
        """Return the path of a worker's report."""
        return self.folder / f"{self.launch}.{number}.json"

    def log(self, number: int) -> Path:
        """Return the path of a worker's log."""
        return self.folder / f"{number}.log"

    @property
    def claims(self) -> Path:
        """Folder of the workers' claims on jobs."""
        return self.folder / f"{self.launch}.claims"

    def reports(self, workers: int) -> dict[int, Report]:
        """Return the report of each worker that has begun, by its number, from 1."""
        found: dict[int, Report] = {}
        for number in range(1, workers + 1):
            with contextlib.suppress(OSError, DamagedResultError):
                found[number] = cast(Report, read_json(self.report(number)))
        return found

    def died(self, workers: int) -> list[int]:
        """Return the numbers of the workers whose process on this machine ended while a job ran."""
        found = self.reports(workers)
        return [number for number, each in found.items() if each["running"] and _process(each) == "ended"]

    def going_on(self, workers: int) -> dict[int, Report]:
        """Return the reports of the workers that may run a job without this process, on this machine or another."""
        found = self.reports(workers)
        return {number: each for number, each in found.items() if each["running"] and _process(each) == "on its own"}

    def has_locks(self) -> bool:
        """Return whether workers can claim jobs: whether the folder's file system has locks. It makes the folder.

        Raises:
            ResultWriteError: The folder is not writable.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with claimed(self.claims, "launch"):
                return True
        except NoLocksError:
            return False

    def clean(self) -> None:
        """Remove the reports and claims of this launch, and outdated ones of others."""
        for path in self.folder.glob("*.*"):
            with contextlib.suppress(FileNotFoundError):
                if path.suffix == ".log" or not (path.name.startswith(f"{self.launch}.") or _is_outdated(path)):
                    continue
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def describe_running(report: Report) -> str:
    """Return what a worker runs, 'baseline 40/100 on node7'."""
    examples = f" {report['done']}/{report['total']}" if report["total"] else ""
    here = Owner.this_process().host
    return f"{report['running']}{examples}" + (f" on {report['host']}" if report["host"] != here else "")


def _is_outdated(path: Path) -> bool:
    return time.time() - path.stat().st_mtime > OUTDATED


def _process(report: Report) -> Literal["ended", "our own", "on its own"]:
    """Return what has become of a worker's process, "on its own" on another machine."""
    if report["host"] != Owner.this_process().host:
        return "on its own"
    try:
        process = psutil.Process(report["pid"])
        if process.status() == psutil.STATUS_ZOMBIE:
            return "ended"
        return "our own" if process.ppid() == os.getpid() else "on its own"
    except psutil.NoSuchProcess:
        return "ended"


class WorkerReport:
    """The report of this worker.

    Args:
        files: Folder of the reports.
        number: Number of the worker, from 1.

    Attributes:
        earlier: Places of the jobs that an earlier process of this worker finished, which its launcher restarted.
    """

    def __init__(self, files: ReportFolder, number: int) -> None:
        self.files, self.number = files, number
        before = files.reports(number).get(number)
        self.earlier = set(before["over"] if before else [])
        me = Owner.this_process()
        self.report: Report = {
            "host": me.host,
            "pid": me.pid,
            "over": [],
            "failed": [],
            "running": None,
            "done": 0,
            "total": 0,
        }
        self._written = 0.0
        self._write()

    def begin(self, name: str) -> None:
        """Report that a job begins."""
        self._set(name, 0, 0)
        self._write()

    def end(self, place: int | None, *, failed: bool = False) -> None:
        """Report that the job which runs has ended; the place is None if another process has it."""
        if place is not None:
            self.report["over"].append(place)
            if failed:
                self.report["failed"].append(place)
        self._set(None, 0, 0)
        self._write()

    @contextlib.contextmanager
    def speaking(self) -> Iterator[None]:
        """Send what this process prints to the worker's log, and its progress to the report, during the block."""
        tqdm.set_lock(threading.RLock())  # its own lock would be shared by processes, and left behind by a killed one
        with contextlib.ExitStack() as until_end:
            file = until_end.enter_context(self.files.log(self.number).open("a", encoding="utf-8", buffering=1))
            until_end.enter_context(contextlib.redirect_stdout(file))
            until_end.enter_context(contextlib.redirect_stderr(file))
            until_end.enter_context(heard_by(self._progress))
            yield

    def _progress(self, name: str, done: int, total: int) -> None:
        self._set(self.report["running"], done, total)
        if time.monotonic() - self._written >= INTERVAL:
            self._write()

    def _set(self, running: str | None, done: int, total: int) -> None:
        self.report["running"], self.report["done"], self.report["total"] = running, done, total

    def _write(self) -> None:
        write_json(self.files.report(self.number), self.report)
        self._written = time.monotonic()


class Watch:
    """Shows the progress of all workers, and their logs, while a launcher runs them.

    Args:
        files: Folder of the reports.
        workers: Number of workers.
        names: Name of each job.
        costs: Cost of each job.
        finished: Places of the jobs that were finished before.
    """

    def __init__(
        self, files: ReportFolder, workers: int, names: Sequence[str], costs: Sequence[Cost], finished: set[int]
    ) -> None:
        self.files, self.workers, self.names, self.costs, self.finished = files, workers, names, costs, finished
        self.read = {number: self._size(number) for number in range(1, workers + 1)}  # bytes of each log
        self.started = self.last_line = time.monotonic()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.bar = tqdm(
            total=len(names),
            file=sys.stderr,
            leave=False,
            disable=not (sys.stderr.isatty() and may_speak()),
            bar_format="{bar:24} {n_fmt}/{total_fmt}  {postfix}",
        )

    def __enter__(self) -> Watch:
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.ended.set()
        self.thread.join()
        self._relay()
        self.bar.close()

    def is_over(self) -> bool:
        """Return whether all jobs are over."""
        return len(self.over()) == len(self.names)

    def over(self) -> set[int]:
        """Return the places of the jobs that are over."""
        reports = self.files.reports(self.workers)
        return self.finished | {place for report in reports.values() for place in report["over"]}

    def describe(self) -> str:
        """Return the state of the launch in a line: jobs done and failed, jobs running and where, time left."""
        reports = self.files.reports(self.workers)
        over = self.finished | {place for report in reports.values() for place in report["over"]}
        failed = {place for report in reports.values() for place in report["failed"]}
        running = [f"{number}: {describe_running(report)}" for number, report in reports.items() if report["running"]]
        done = sum(self.costs[place].seconds for place in over) + sum(
            report["done"] / report["total"] * self.costs[self.names.index(report["running"])].seconds
            for report in reports.values()
            if report["running"] in self.names and report["total"]
        )
        left = sum(cost.seconds for cost in self.costs) - done
        spent = time.monotonic() - self.started
        parts = [f"{len(over)}/{len(self.names)} done", f"{len(failed)} failed" if failed else ""]
        parts += [f"{spent / done * left:.0f} s left" if done else "", "; ".join(running)]
        return "  ".join(part for part in parts if part)

    def _run(self) -> None:
        while not self.ended.wait(INTERVAL):
            self._relay()
            self.bar.n = len(self.over())
            self.bar.set_postfix_str(self.describe().partition("  ")[2])
            if self.bar.disable and time.monotonic() - self.last_line >= PLAIN_INTERVAL:
                self.last_line = time.monotonic()
                log(f"workers  {self.describe()}")

    def _relay(self) -> None:
        """Print the whole lines that workers have added to their logs."""
        for number, start in self.read.items():
            with contextlib.suppress(OSError), self.files.log(number).open("rb") as file:
                file.seek(start)
                whole, newline, _ = file.read().rpartition(b"\n")
                self.read[number] += len(whole + newline)
                for line in whole.decode("utf-8", "replace").splitlines():
                    log(f"worker {number}  {line}")

    def _size(self, number: int) -> int:
        path = self.files.log(number)
        return path.stat().st_size if path.exists() else 0
