"""States of Slurm's tasks as squeue prints them, and what becomes of tasks that a launch leaves."""

from __future__ import annotations

import os

import pytest
from submitit.slurm.slurm import SlurmJob

from latentwire.harness.slurm_queue import QueueWatcher, watched_tasks


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Programs squeue, which prints a file, and scancel, which records its arguments."""
    (tmp_path / "squeue").write_text(f"#!/bin/sh\ncat {tmp_path}/queue\n")
    (tmp_path / "scancel").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/cancelled\n')
    for program in ("squeue", "scancel"):
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(SlurmJob, "watcher", SlurmJob.watcher)
    return tmp_path


def watcher_of(*numbers: str) -> QueueWatcher:
    """Return a watcher of tasks."""
    watcher = QueueWatcher()
    for number in numbers:
        watcher.register_job(number)
    return watcher


def test_a_task_that_the_queue_does_not_list_is_gone(slurm):
    (slurm / "queue").write_text("7_0|RUNNING\n           7_1|PENDING\n8|FAILED\n")
    watcher = watcher_of("7_0", "7_1", "7_2")
    watcher.update()
    assert [watcher.get_state(number, mode="cache") for number in ("7_0", "7_1", "7_2")] == [
        "RUNNING", "PENDING", "GONE",
    ]  # fmt: skip
    assert watcher.left() == ["7_0", "7_1"]


@pytest.mark.parametrize("state", ["FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "OUT_OF_MEMORY"])
def test_a_dead_task_is_done_when_the_others_are(slurm, state):
    """Until then the others take over its jobs."""
    watcher = watcher_of("7_0", "7_1")
    for other, done in (("RUNNING", False), ("SUSPENDED", False), ("CONFIGURING", False), ("COMPLETED", True)):
        (slurm / "queue").write_text(f"7_0|{state}\n7_1|{other}\n")
        watcher.update()
        assert watcher.is_done("7_0", mode="cache") is done


def test_tasks_that_wait_again_are_cancelled_after_success(slurm, tmp_path):
    """A running task has delivered its result; a task that ended needs nothing."""
    (slurm / "queue").write_text("7_0|RUNNING\n7_1|PENDING\n7_2|COMPLETED\n7_3|COMPLETING\n9|PENDING\n")
    with watched_tasks(lambda: False):
        for number in range(4):
            SlurmJob(tmp_path, f"7_{number}")
    assert (slurm / "cancelled").read_text().split() == ["7_1", "7_3"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_tasks_that_go_on_after_an_error_are_named(slurm, tmp_path, capsys, error):
    (slurm / "queue").write_text("7_0|RUNNING\n7_1|FAILED\n")
    with pytest.raises(error), watched_tasks(lambda: False):
        for number in range(2):
            SlurmJob(tmp_path, f"7_{number}")
        raise error
    assert "scancel 7_0 ends them" in capsys.readouterr().err
    assert not (slurm / "cancelled").exists()


def test_tasks_not_begun_are_cancelled_when_all_is_done(slurm):
    (slurm / "queue").write_text("7_0|COMPLETED\n7_1|PENDING\n")
    watcher, finished = watcher_of("7_0", "7_1"), False
    watcher.all_over = lambda: finished
    watcher.update()
    assert not watcher.is_done("7_0", mode="cache")
    assert not (slurm / "cancelled").exists()
    finished = True
    assert not watcher.is_done("7_0", mode="cache")  # the queue still lists the other
    assert (slurm / "cancelled").read_text().split() == ["7_1"]
    (slurm / "cancelled").unlink()
    watcher.is_done("7_0", mode="cache")
    assert not (slurm / "cancelled").exists()  # once is enough
