"""Number of workers: what a user gives, what a launcher has, and what is refused with a remedy."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from latentwire.harness import worker_counts
from latentwire.harness.errors import UserError
from latentwire.harness.worker_counts import WORKER_BYTES, own_workers, require_one_number, set_workers

JOBLIB = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
SLURM = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
RAY = "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher"
BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


def config(target: str, workers: object = None):
    made = OmegaConf.create(f"hydra: {{launcher: {{_target_: {target}, n_jobs: '${{workers}}'}}}}")
    return OmegaConf.merge({"workers": workers}, made)


def machine(monkeypatch, cores: int, memory: float, gpus: int = 0) -> None:
    """Give the machine other means."""
    monkeypatch.setattr(worker_counts.os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(worker_counts.psutil, "virtual_memory", lambda: SimpleNamespace(available=memory))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


def test_the_number_goes_into_the_launchers_settings():
    sweep = config(JOBLIB, 3)
    assert set_workers(sweep, takes_workers=False) == 3
    assert sweep.hydra.launcher.n_jobs == 3


@pytest.mark.parametrize(
    ("cores", "memory", "gpus", "expected"), [(8, 100, 0, 8), (8, 3, 0, 3), (2, 0.5, 0, 1), (8, 100, 4, 4)]
)
def test_without_a_number_a_machine_has_what_fits(monkeypatch, capfd, cores, memory, gpus, expected):
    """One worker for each GPU; else for each core, if each has its memory. The reason is printed."""
    machine(monkeypatch, cores, memory * WORKER_BYTES, gpus)
    for given in (None, "auto"):
        sweep = config(JOBLIB, given)
        assert set_workers(sweep, takes_workers=False) == expected == sweep.workers
    reason = "one for each GPU" if gpus else f"this machine has {cores} cores"
    assert f"{expected} workers: {reason}" in capfd.readouterr().err


def test_a_cluster_needs_a_number():
    with pytest.raises(UserError, match="workers: this launcher has no number of workers by itself; give workers=N"):
        set_workers(config(SLURM), takes_workers=False)


@pytest.mark.parametrize("given", [0, -1, 1.5, True, "abc", "2", [1, 2]])
def test_a_number_that_is_none_is_refused(given):
    with pytest.raises(UserError, match=r"workers=.*: must be a whole number of processes, at least 1"):
        set_workers(config(JOBLIB, given), takes_workers=False)


def test_workers_need_a_launcher_or_a_task_that_reads_them():
    with pytest.raises(UserError, match=r"workers=2: .* needs a launcher; add -m and hydra/launcher=joblib"):
        set_workers(config(BASIC, 2), takes_workers=False)
    assert set_workers(config(BASIC, 2), takes_workers=True) == 1  # the task starts them itself
    assert set_workers(config(BASIC), takes_workers=False) == 1


def test_a_launcher_that_is_not_installed_names_the_extra(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "ray" in name else real(name))
    with pytest.raises(UserError, match=r"hydra/launcher: .* not installed; pip install 'latentwire\[ray\]'"):
        set_workers(config(RAY, 2), takes_workers=False)
    assert set_workers(config("my_launcher.Launcher", 2), takes_workers=False) == 2


def test_a_sweep_has_one_number():
    require_one_number([2, 2])
    with pytest.raises(UserError, match=r"workers=1,2: a launcher has one number of workers for the whole sweep"):
        require_one_number([1, 2, 1])


def test_a_task_that_divides_its_work_has_one_by_default():
    assert (own_workers(OmegaConf.create({"workers": None})), own_workers(OmegaConf.create({"workers": 3}))) == (1, 3)
    with pytest.raises(UserError, match="workers=0: must be"):
        own_workers(OmegaConf.create({"workers": 0}))
