"""A job for workers: it waits for its turn and does units together with the others."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from omegaconf import DictConfig

from latentwire.harness.errors import UserError
from latentwire.harness.progress import log, worker
from latentwire.harness.shared_work import work_through

UNITS = ["a", "b", "c", "d", "e", "f"]


def write_units(cfg: DictConfig) -> None:
    """Write a file for each unit, with what the process is. Rank 1 fails."""
    folder, rank = Path(cfg.folder), str(worker())
    log(f"rank {rank} is here")
    if rank == "1":
        raise UserError(f"rank {rank} is broken")
    (folder / f"ready{rank}").touch()
    deadline = time.monotonic() + 240
    while len(list(folder.glob("ready*"))) < cfg.ready:
        assert time.monotonic() < deadline
        time.sleep(0.01)

    def work(name: str) -> None:
        time.sleep(0.1)
        (folder / name).write_text(f"{rank} {cfg.workers} {torch.get_num_threads()} {os.environ['OMP_NUM_THREADS']}")

    work_through(folder, UNITS, lambda name: (folder / name).exists(), work)


def is_large(cfg: DictConfig) -> bool:
    """Return whether the size of a job is above 5."""
    return bool(cfg.size > 5)
