"""Jobs and launchers for tests of workers. Main entries: `note()`, `Launcher`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher as HydraLauncher
from omegaconf import DictConfig, OmegaConf

from latentwire.harness.errors import UserError
from latentwire.harness.ownership import BusyError
from latentwire.harness.session import Session
from latentwire.harness.shares import Cost


class TwoPartError(Exception):
    """An exception that pickle cannot copy."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")


def note(cfg: DictConfig, session: Session) -> dict[str, str]:
    """Note in the file `ran` that a job ran, or fail as its config says, or be busy while NAME.busy is there."""
    folder = Path(cfg.out)
    if (folder / f"{cfg.name}.busy").exists():
        raise BusyError(f"{cfg.name} is busy")
    if cfg.name in cfg.fails:
        raise UserError(f"{cfg.name}=x: must be y; give y")
    if "bug" in cfg.fails:
        raise TwoPartError("it", "is broken")
    with (folder / "ran").open("a", encoding="utf-8") as file:
        file.write(f"{cfg.name} {cfg.force}\n")
    return {"name": str(cfg.name), "status": "ok"}


def costs(cfgs: Sequence[DictConfig]) -> list[Cost]:
    """Return a cost of 0 for each job with a file NAME.done, and of 1 second for the others."""
    return [Cost(seconds=0.0 if (Path(cfg.out) / f"{cfg.name}.done").exists() else 1.0) for cfg in cfgs]


def be_worker(number: int) -> None:
    """Let Hydra give this process the number of a worker, from 1."""
    config = OmegaConf.create({"hydra": OmegaConf.structured(HydraConf)})
    config.hydra.job.num = number - 1
    HydraConfig.instance().set_config(config)


class Launcher(HydraLauncher):
    """Runs each worker in this process, one after the other, or the last one first."""

    backwards = False

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        """Take over the function."""
        self.function = task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Return what the function returned in each worker."""
        found = {}
        for number in sorted(range(len(job_overrides)), reverse=self.backwards):
            be_worker(initial_job_idx + number + 1)
            found[number] = JobReturn(_return_value=self.function(OmegaConf.create({})), status=JobStatus.COMPLETED)
        return [found[number] for number in range(len(job_overrides))]


class BrokenLauncher(Launcher):
    """Starts no worker."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Fail as a launcher whose programs are missing."""
        raise RuntimeError("no srun here\nare you on a cluster?")
