"""More processes of one job: their shares, their failures, and their end."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import torch
from omegaconf import OmegaConf

from latentwire.harness import workers
from latentwire.harness.errors import UserError
from latentwire.harness.workers import started_workers
from tests.helpers.jobs import UNITS, write_units
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.usefixtures("one_thread")
JOB = "tests.helpers.jobs:write_units"


@pytest.mark.slow
def test_workers_share_the_units_and_a_failed_one_is_reported(tmp_path, monkeypatch, capfd):
    """Of three processes one fails, and only this one writes to the terminal besides the first."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    torch.set_num_threads(6)
    cfg = OmegaConf.create({"folder": str(tmp_path), "workers": 3, "ready": 2})
    with started_workers(JOB, cfg, 3):
        assert torch.get_num_threads() == 2
        write_units(cfg)
    assert torch.get_num_threads() == 6
    written = [(tmp_path / name).read_text().split() for name in UNITS]
    by_rank = {rank: settings for rank, *settings in written}
    assert by_rank == {"0": ["3", "2", "7"], "2": ["1", "2", "2"]}
    err = capfd.readouterr().err
    assert "rank 0 is here" in err and "rank 2" not in err
    assert "worker: rank 1 is broken" in err and "Traceback" not in err
    assert err.count("warning: a worker ended with status 1; the others did its share") == 1


def started(monkeypatch) -> list[subprocess.Popen]:
    """Return a list that gets the processes that are started."""
    found: list[subprocess.Popen] = []
    real = subprocess.Popen

    def popen(*arguments, **options):
        found.append(real(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    return found


def test_workers_end_with_the_job(tmp_path, monkeypatch):
    """They wait for a third process, which does not come."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    processes = started(monkeypatch)
    cfg = OmegaConf.create({"folder": str(tmp_path), "workers": 3, "ready": 99})
    with pytest.raises(KeyError), started_workers(JOB, cfg, 3):
        raise KeyError
    assert [process.returncode for process in processes] == [-15, -15]


PARENT = """
import sys, time
from omegaconf import OmegaConf
from latentwire.harness.workers import started_workers
cfg = OmegaConf.create({"folder": sys.argv[1], "workers": 3, "ready": 99})
with started_workers("tests.helpers.jobs:write_units", cfg, 3):
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_worker_ends_with_a_killed_parent(tmp_path):
    """The second worker waits for processes that do not come. The output ends when no process holds it any more."""
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    parent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (tmp_path / "ready2").exists():
        assert parent.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    parent.kill()
    parent.communicate(timeout=60)
    assert parent.returncode == -9


def test_a_worker_that_ends_early_is_reported(monkeypatch, capfd):
    monkeypatch.setattr(workers.sys, "executable", "/bin/false")
    with started_workers(JOB, OmegaConf.create({"text": "x" * 10**6}), 2):
        pass
    assert "a worker ended with status 1" in capfd.readouterr().err


def test_earlier_workers_end_if_a_later_one_cannot_start(tmp_path, monkeypatch):
    processes = started(monkeypatch)
    real = subprocess.Popen

    def popen(*arguments, **options):
        if processes:
            raise OSError("no more processes")
        return real(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(OSError, match="no more processes"), started_workers(JOB, OmegaConf.create({}), 3):
        pytest.fail("the block began")
    assert [process.returncode for process in processes] == [-15]


def test_one_process_starts_no_worker(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **options: pytest.fail("started"))
    before, threads = dict(os.environ), torch.get_num_threads()
    with started_workers(JOB, OmegaConf.create({}), 1):
        assert torch.get_num_threads() == threads
    assert dict(os.environ) == before


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "2", None])
def test_a_number_of_workers_that_is_not_one_is_refused(number):
    with (
        pytest.raises(UserError, match=rf"workers={number}: must be a whole number of processes, at least 1"),
        started_workers(JOB, OmegaConf.create({}), number),
    ):
        pytest.fail("the block began")
