"""The task mode_collapse: GRPO with several arms and seeds, then the verdict.

Main entries: `run()` trains one run, `direct()` shares the runs among processes, and `finish()` gives the verdict.

A process claims a run with a lock in the folder of the experiment. The same command on another machine that sees this
folder therefore takes part. A run that was killed is continued by the next process that looks at it.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from omegaconf import DictConfig, OmegaConf

from kat.collapse.plan import RECIPE, count_workers, experiment_folder, fix_experiment, verdict_command
from kat.collapse.runs import FAILED, error_of
from kat.collapse.task import verdict_of_folder
from kat.grpo.task import grpo
from kat.pipeline.artifacts import locate
from kat.pipeline.ensure import config_of, ensure, prompt_tasks
from kat.world.task import world
from latentwire.harness.claims import CLAIMS, claimed
from latentwire.harness.errors import UserError
from latentwire.harness.grids import Job
from latentwire.harness.ownership import BusyError, is_deferring
from latentwire.harness.progress import is_main_process, log
from latentwire.harness.results import FORMAT, ResultWriteError, write_json, writing
from latentwire.harness.session import Session, job
from latentwire.harness.shares import Cost
from latentwire.harness.typed_config import plain_values
from latentwire.harness.workers import started_workers

WAIT = 2.0  # seconds between two looks at runs that other processes have claimed
WORK = "kat.collapse.training:work"


@dataclass(frozen=True)
class Outcome:
    """What came of a run: it is finished, it failed with an error, or another process is at work on it."""

    name: str
    status: Literal["finished", "failed", "elsewhere"]
    error: str = ""


@dataclass(frozen=True)
class Tally:
    """Counts the finished runs of an experiment, to say how long the others will take."""

    folders: Sequence[Path]
    before: int  # finished when the command began
    started: float  # monotonic time in seconds

    @classmethod
    def of(cls, folders: Sequence[Path]) -> Tally:
        """Begin to count."""
        return cls(folders, sum(map(is_over, folders)), time.monotonic())

    def describe(self) -> str:
        """Return how many runs are over, and the time left."""
        done, total = sum(map(is_over, self.folders)), len(self.folders)
        if done == total or done <= self.before:
            return f"{done} of {total} runs"
        left = (time.monotonic() - self.started) / (done - self.before) * (total - done)
        return f"{done} of {total} runs, about {left / 60:.0f} min left"


@job
def run(cfg: DictConfig, session: Session | None = None) -> Outcome:
    """Train one run of the experiment, after its world and its files; do nothing if another process is at it.

    A user's error is written to failed.json and returned, so that the other runs go on.
    """
    if session is not None and not session.sweeping:
        raise UserError(f"task=mode_collapse: is an experiment of many runs; begin with {RECIPE}")
    name, out, claims = str(cfg.name), folder_of(cfg), experiment_folder(cfg) / CLAIMS
    if (out / FAILED).is_file():  # in this command, by whichever process
        return Outcome(name, "failed", error_of(out))
    try:
        if not _has_ground(cfg):
            with claimed(claims, _ground_name(cfg)) as is_mine:
                if not is_mine:
                    return _elsewhere(name)
                _make_ground(cfg)
        with claimed(claims, name) as is_mine:
            if not is_mine:
                return _elsewhere(name)
            is_new = not is_over(out)
            own = cfg.copy()
            own.task = "grpo"
            grpo(own)
            if not cfg.keep_policies:
                for folder in filter(Path.is_dir, (out / "model", out / "checkpoints")):
                    with writing(folder):
                        shutil.rmtree(folder)
    except ResultWriteError as error:  # the other runs would meet the same disk
        raise ResultWriteError(error.path, error.reason, "experiment_folder=FOLDER") from error
    except BusyError:
        raise
    except UserError as error:
        if not (out / "result.json").is_file():
            write_json(out / FAILED, {"format": FORMAT, "arm": cfg.arm, "seed": cfg.seed, "error": str(error)})
        log(f"{name}  FAILED: {error}")
        return Outcome(name, "failed", str(error))
    if is_new and session is not None and (tally := _tally(session, cfg, None)) is not None:
        log(f"{tally.describe()}: {name} is finished")
    return Outcome(name, "finished")


def direct(
    cfg: DictConfig, jobs: list[Job], compose: Callable[[Sequence[str]], Job], session: Session
) -> Generator[list[Job], list[Outcome], list[Outcome]]:
    """Train all runs, seed by seed, together with workers, until none is left.

    Args:
        cfg: Config of the sweep.
        jobs: One job for each arm and seed.
        compose: Returns the job with the given overrides.
        session: Session of the sweep.

    Yields:
        The jobs that are not over; the generator receives their outcomes.

    Returns:
        The outcomes of all runs.

    Raises:
        UserError: A setting is out of range, or differs from what was fixed before the first run.
    """
    own = count_workers(cfg, len(jobs))
    workers = 1 if session.workers > 1 else own  # a launcher has its own workers
    fix_experiment(cfg, jobs, session.command)
    for one in jobs:
        (folder_of(one.config) / FAILED).unlink(missing_ok=True)  # of an earlier command; the run gets another try
    jobs = sorted(jobs, key=lambda one: (not is_control(one.config), int(one.config.seed)))
    _tally(session, cfg, [folder_of(one.config) for one in jobs])
    plain = [plain_values(one.config) for one in jobs]
    shares = OmegaConf.create({"plugins": cfg.plugins, "workers": workers, "jobs": plain})
    found: dict[str, Outcome] = {}
    with started_workers(WORK, shares, workers):
        waiting = jobs
        while waiting:
            for outcome in (yield waiting):
                found[outcome.name] = outcome
            waiting = [one for one in waiting if found[one.config.name].status == "elsewhere"]
            if waiting:
                time.sleep(WAIT)
    log(f"{sum(outcome.status == 'finished' for outcome in found.values())} of {len(jobs)} runs are finished")
    return list(found.values())


def costs(cfgs: Sequence[DictConfig]) -> list[Cost]:
    """Return the cost of each run: 1, or 0 if it is finished. The runs of a world belong together."""
    return [Cost(str(cfg.folder), 0.0 if is_over(folder_of(cfg)) else 1.0) for cfg in cfgs]


def work(cfg: DictConfig) -> None:
    """Train runs in a worker until none is left: the first ones that nobody has claimed."""
    waiting = list(cfg.jobs)
    while waiting:
        waiting = [one for one in waiting if run(one).status == "elsewhere"]
        if waiting:
            time.sleep(WAIT)


def finish(cfg: DictConfig, results: list[Outcome], session: Session) -> None:
    """Give the verdict on the runs. With `only`, some runs are missing on purpose, and there is none.

    Raises:
        UserError: A run failed, or the runs cannot be compared.
    """
    if not is_main_process():
        return
    folder = experiment_folder(cfg)
    failed = [outcome for outcome in results if outcome.status == "failed"]
    if cfg.only is None:
        try:
            verdict_of_folder(folder, cfg.collapse, cfg.seed, folder)
        except UserError as error:
            if not failed:
                raise
            log(f"no verdict: {error}")
    else:
        log(
            f"no verdict, because only={cfg.only} leaves out runs; for one on the finished runs: {verdict_command(cfg)}"
        )
    if failed:
        raise UserError(f"{len(failed)} of {len(results)} runs failed, such as {failed[0].name}: {failed[0].error}. "
                        "The same command tries them again")  # fmt: skip


def _elsewhere(name: str) -> Outcome:
    """Return the outcome of a run that another process trains. A launcher's worker defers it instead.

    Raises:
        BusyError: In a launcher's worker.
    """
    if is_deferring():
        raise BusyError(f"{name}: another process trains it")
    return Outcome(name, "elsewhere")


def folder_of(cfg: DictConfig) -> Path:
    """Return the folder of a run."""
    return Path(str(cfg.out)).expanduser()


def is_over(folder: Path) -> bool:
    """Return whether a run is finished or has failed."""
    return any((folder / name).is_file() for name in ("result.json", FAILED))


def is_control(cfg: DictConfig) -> bool:
    """Return whether a run gives the margins and is not compared."""
    return int(cfg.seed) in cfg.collapse.control_seeds


def _tally(session: Session, cfg: DictConfig, folders: Sequence[Path] | None) -> Tally | None:
    """Return the tally of a session. The first call names the folders; in a process without one there is None."""
    return session.keep("tally", str(cfg.experiment_folder), lambda: None if folders is None else Tally.of(folders))


def _ground_name(cfg: DictConfig) -> str:
    """Return the claim's name of what a run stands on: its world and its files."""
    return "ground_" + re.sub(r"\W+", "_", str(cfg.folder))


def _has_ground(cfg: DictConfig) -> bool:
    """Return whether the world, the prompts and the weights of a run exist."""
    has_world = cfg.world is None or (Path(str(cfg.world)).expanduser() / "result.json").is_file()
    return has_world and all(locate(cfg, name).is_file() for name in ("prompts_file", "weights_file"))


def _make_ground(cfg: DictConfig) -> None:
    """Make the planted world of a run's seed, if it has one, and the files of every arm."""
    if cfg.world is not None and not (Path(str(cfg.world)).expanduser() / "result.json").is_file():
        of_world = {name: cfg[name] for name in ("seed", "dtype", "device")}
        world(config_of(cfg, "train", "world", out=cfg.world, **of_world))
    ensure(cfg, [*prompt_tasks(cfg), "embed", "density"])
