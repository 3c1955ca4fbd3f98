"""Units of work that real processes share, with kills and errors."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from filelock import FileLock

from latentwire.harness.errors import UserError
from latentwire.harness.shared_work import work_through
from tests.helpers.programs import environment

# A process that waits for the others, works, and prints how many units it did and how many are finished then.
PROCESS = """
import os, sys, time
from pathlib import Path
from latentwire.harness.shared_work import work_through

folder, processes, seconds, names = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]

def work(name):
    with (folder / "log").open("a") as file:
        file.write(f"{name} {os.getpid()}\\n")
    time.sleep(seconds)
    (folder / f"{name}.done").touch()

(folder / f"{os.getpid()}.ready").touch()
while len(list(folder.glob("*.ready"))) < processes:
    time.sleep(0.005)
own = work_through(folder, names, lambda name: (folder / f"{name}.done").exists(), work)
print(own, len(list(folder.glob("*.done"))))
"""
NAMES = [f"unit{number:02d}" for number in range(12)]


def begin(folder: Path, processes: int, seconds: float, names: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-c", PROCESS, str(folder), str(processes), str(seconds), *names]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)


def log_of(folder: Path) -> list[list[str]]:
    path = folder / "log"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(reached) -> None:
    deadline = time.monotonic() + 240
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def is_done(folder: Path):
    return lambda name: (folder / f"{name}.done").exists()


@pytest.mark.slow
def test_three_processes_do_each_unit_once(tmp_path):
    """Each does a part, and returns when all units are finished."""
    (tmp_path / "unit03.done").touch()
    processes = [begin(tmp_path, 3, 0.05, NAMES) for _ in range(3)]
    printed = [process.communicate(timeout=60)[0].split() for process in processes]
    own = [int(row[0]) for row in printed]
    assert sum(own) == 11 and min(own) > 0
    assert [row[1] for row in printed] == ["12"] * 3
    log = log_of(tmp_path)
    assert Counter(name for name, _ in log) == Counter(name for name in NAMES if name != "unit03")
    assert sorted(Counter(pid for _, pid in log).values()) == sorted(own)
    assert not (tmp_path / "claims").exists()


@pytest.mark.slow
def test_the_unit_of_a_killed_process_is_done_by_another(tmp_path):
    first = begin(tmp_path, 1, 600, NAMES[:3])
    wait_until(lambda: log_of(tmp_path))
    [[held, _]] = log_of(tmp_path)
    second = begin(tmp_path, 2, 0, NAMES[:3])
    wait_until(lambda: len(list(tmp_path.glob("*.done"))) == 2)
    time.sleep(0.3)  # longer than the time between two looks
    assert second.poll() is None and not is_done(tmp_path)(held)
    first.kill()
    assert second.communicate(timeout=60)[0].split() == ["3", "3"]
    assert log_of(tmp_path)[-1] == [held, str(second.pid)]
    first.communicate()


def test_units_finished_before_are_not_done_again(tmp_path):
    done = []

    def work(name: str) -> None:
        done.append(name)
        (tmp_path / f"{name}.done").touch()

    (tmp_path / "b.done").touch()
    assert work_through(tmp_path, ["a", "b", "c"], is_done(tmp_path), work) == 2
    assert sorted(done) == ["a", "c"] and not (tmp_path / "claims").exists()
    assert work_through(tmp_path, ["a", "b", "c"], is_done(tmp_path), work) == 0
    assert work_through(tmp_path, [], is_done(tmp_path), work) == 0


def test_a_unit_that_another_finished_meanwhile_is_skipped(tmp_path):
    """Another process finishes the unit after the first look and before the claim."""
    looks = iter([False, True])
    assert work_through(tmp_path, ["a"], lambda _: next(looks), lambda _: pytest.fail("done twice")) == 0


def test_an_error_leaves_the_unit_free(tmp_path):
    """Also while the error, and with it the frame that held the claim, is still kept."""

    def fail(name: str) -> None:
        raise RuntimeError(name)

    with pytest.raises(RuntimeError) as kept:
        work_through(tmp_path, ["a"], is_done(tmp_path), fail)
    assert str(kept.value) == "a"
    other = FileLock(tmp_path / "claims" / "a", blocking=False)
    other.acquire()
    other.release()
    assert work_through(tmp_path, ["a"], is_done(tmp_path), lambda name: (tmp_path / f"{name}.done").touch()) == 1


def test_a_unit_that_stays_unfinished_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"a is not finished after its work; check the disk"):
        work_through(tmp_path, ["a"], lambda _: False, lambda _: None)
