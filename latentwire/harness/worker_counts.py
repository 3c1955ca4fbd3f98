"""Number of workers of a launcher. Main entry: `set_workers()`."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Collection

import psutil
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from latentwire.harness.errors import UserError
from latentwire.harness.progress import log

BASIC = "BasicLauncher"  # Hydra's own launcher, which runs one job after the other in this process
ON_THIS_MACHINE = ("JoblibLauncher", "LocalLauncher")  # launchers whose workers are processes on this machine
EXTRAS = {"hydra_joblib_launcher": "joblib", "hydra_submitit_launcher": "slurm", "hydra_ray_launcher": "ray"}
WORKER_BYTES = 4 * 2**30  # memory that the default leaves for each worker


def set_workers(config: DictConfig, *, takes_workers: bool) -> int:
    """Return the number of workers of a sweep, and set it in the config, where the launcher's settings refer to it.

    Args:
        config: Config of the sweep.
        takes_workers: Whether the task itself reads `workers`, so that it means something without a launcher.

    Raises:
        UserError: The launcher is not installed, the number is not a whole number above 0, or the launcher cannot say
            how many workers it has.
    """
    module, _, launcher = str(config.hydra.launcher._target_).rpartition(".")
    workers = None if config.workers == "auto" else config.workers
    if launcher == BASIC:
        _require_reader(config, takes_workers=takes_workers)
        return 1
    package = module.removeprefix("hydra_plugins.").partition(".")[0]
    if package in EXTRAS and importlib.util.find_spec(f"hydra_plugins.{package}") is None:
        raise UserError(f"hydra/launcher: its package is not installed; pip install 'latentwire[{EXTRAS[package]}]'")
    if workers is None:
        workers = _default(launcher)
        log(f"{workers} workers: {_reason(launcher)}; workers=N sets another number")
    require_workers(workers)
    with open_dict(config):
        config.workers = workers
    return int(workers)


def require_launcher(config: DictConfig, *, takes_workers: bool) -> None:
    """Check that neither `workers` nor a launcher is chosen where nothing divides the work.

    Raises:
        UserError: One of them is.
    """
    chosen = HydraConfig.get().runtime.choices.get("hydra/launcher", "basic") if HydraConfig.initialized() else "basic"
    if chosen != "basic":
        raise UserError(f"hydra/launcher={chosen}: divides the jobs of a sweep; add -m, or leave it out")
    _require_reader(config, takes_workers=takes_workers)


def require_one_number(numbers: Collection[object]) -> None:
    """Check that the jobs of a launcher's sweep all have the same `workers`.

    Args:
        numbers: The setting of each job.

    Raises:
        UserError: They differ.
    """
    if len(set(numbers)) > 1:
        shown = ",".join(map(str, dict.fromkeys(numbers)))
        raise UserError(f"workers={shown}: a launcher has one number of workers for the whole sweep; give one number")


def _require_reader(config: DictConfig, *, takes_workers: bool) -> None:
    if config.get("workers") is not None and not takes_workers:
        raise UserError(
            f"workers={config.workers}: divides the configurations of a sweep, and needs a launcher; add -m and "
            "hydra/launcher=joblib (or slurm, ray), or leave it out"
        )


def require_workers(workers: object) -> None:
    """Check a number of workers.

    Raises:
        UserError: It is not a whole number above 0.
    """
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
        raise UserError(f"workers={workers}: must be a whole number of processes, at least 1")


def own_workers(cfg: DictConfig) -> int:
    """Return the number of processes of a task that divides its own work: `workers`, or 1 if it is null.

    Raises:
        UserError: It is not a whole number above 0.
    """
    workers = 1 if cfg.workers is None else cfg.workers
    require_workers(workers)
    return int(workers)


def _default(launcher: str) -> int:
    """Return how many workers a launcher has means for."""
    import torch

    if launcher not in ON_THIS_MACHINE:
        raise UserError("workers: this launcher has no number of workers by itself; give workers=N, one for each task "
                        "of the cluster")  # fmt: skip
    if torch.cuda.is_available():
        return torch.cuda.device_count()
    return max(1, min(len(os.sched_getaffinity(0)), int(psutil.virtual_memory().available // WORKER_BYTES)))


def _reason(launcher: str) -> str:
    import torch

    if torch.cuda.is_available():
        return "one for each GPU of this machine"
    cores, memory = len(os.sched_getaffinity(0)), psutil.virtual_memory().available / 2**30
    return f"this machine has {cores} cores, and {memory:.0f} GiB of free memory for workers of 4 GiB"
