"""What workers report: progress in one place, their logs, who died and who goes on, and what is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latentwire.harness import worker_reports
from latentwire.harness.claims import claimed
from latentwire.harness.progress import Progress, log
from latentwire.harness.results import read_json, write_json
from latentwire.harness.shares import Cost
from latentwire.harness.worker_reports import OUTDATED, ReportFolder, Watch, WorkerReport

NAMES = ["a", "b", "c", "d"]


@pytest.fixture
def files(tmp_path) -> ReportFolder:
    return ReportFolder(tmp_path, "launch")


def watch_of(files: ReportFolder, finished: set[int] | None = None) -> Watch:
    return Watch(files, 2, NAMES, [Cost(seconds=10.0) for _ in NAMES], finished or set())


def test_a_report_has_what_is_over_failed_and_running(files):
    report = WorkerReport(files, 2)
    report.begin("b")
    report.end(1)
    report.begin("c")
    report.end(2, failed=True)
    report.begin("d")
    assert files.reports(2) == {2: read_json(files.report(2))}
    found = files.reports(2)[2]
    assert (found["pid"], found["over"], found["failed"], found["running"]) == (os.getpid(), [1, 2], [2], "d")
    report.end(None)  # another process has it
    assert (files.reports(2)[2]["over"], files.reports(2)[2]["running"]) == ([1, 2], None)


def test_a_restarted_worker_knows_what_it_had_finished(files):
    first = WorkerReport(files, 1)
    assert first.earlier == set()
    first.begin("a")
    first.end(0)
    again = WorkerReport(files, 1)
    assert again.earlier == {0} and files.reports(1)[1]["over"] == []
    assert WorkerReport(ReportFolder(files.folder, "other"), 1).earlier == set()


def test_the_state_of_a_launch_is_one_line(files, monkeypatch):
    """Two of four equal jobs are over, one half: 25 of 40 seconds of work are done after 50, so 30 are left."""
    now = [100.0]
    monkeypatch.setattr(worker_reports.time, "monotonic", lambda: now[0])
    watch = watch_of(files)
    assert watch.describe() == "0/4 done"
    one, two = WorkerReport(files, 1), WorkerReport(files, 2)
    for place, failed in ((0, False), (1, True)):
        one.begin(NAMES[place])
        one.end(place, failed=failed)
    one.begin("c")
    now[0] += 50
    with one.speaking(), Progress("c", 8) as progress:
        progress.advance(4, "")
    write_json(files.report(2), {**files.reports(2)[2], "host": "node7", "running": "d"})
    assert watch.describe() == "2/4 done  1 failed  30 s left  1: c 4/8; 2: d on node7"
    assert watch.over() == {0, 1} and watch_of(files, {3}).over() == {0, 1, 3}
    assert watch_of(files, {3}).describe().startswith("3/4 done")
    two.end(None)


def test_what_a_worker_prints_is_in_its_log(files, capfd):
    files.log(1).write_text("of an earlier launch\n")
    with WorkerReport(files, 1).speaking():
        log("first line")
        print("on standard output")
        print("on standard error", file=sys.stderr)
    lines = ["of an earlier launch", "first line", "on standard output", "on standard error"]
    assert files.log(1).read_text().splitlines() == lines
    assert capfd.readouterr() == ("", "")


def test_the_parent_shows_whole_new_lines_of_the_logs(files, capfd, monkeypatch):
    monkeypatch.setattr(worker_reports, "INTERVAL", 0.01)
    files.log(1).write_text("of an earlier launch\n")
    watch = watch_of(files)
    with watch, files.log(1).open("a") as one, files.log(2).open("a") as two:
        two.write("is here\n")
        two.flush()
        for text in ("first line\nhalf", " a line\n"):
            before = watch.read[1]
            one.write(text)
            one.flush()
            deadline = time.monotonic() + 30
            while watch.read[1] == before and time.monotonic() < deadline:
                time.sleep(0.01)
    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines if line[:8] == "worker 1"] == ["worker 1  first line", "worker 1  half a line"]
    assert "worker 2  is here" in lines and len(lines) == 3


def test_the_dead_and_the_living_are_told_apart(files):
    """A process that ended, one of our own, one that has another parent, and one on another machine."""
    for number in (1, 2, 3, 4):
        WorkerReport(files, number).begin(NAMES[number - 1])
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        pids = {1: child.pid, 2: child.pid, 3: os.getppid(), 4: child.pid}
        for number, pid in pids.items():
            host = {"host": "node7"} if number == 4 else {}
            write_json(files.report(number), {**files.reports(4)[number], "pid": pid, **host})
        assert files.died(4) == [] and list(files.going_on(4)) == [3, 4]
        child.kill()  # it is not waited for yet, as the workers of a broken launcher
        while Path(f"/proc/{child.pid}/stat").read_text().split()[2] != "Z":
            time.sleep(0.01)
        assert files.died(4) == [1, 2]
        child.wait()
        assert files.died(4) == [1, 2]
    write_json(files.report(1), {**files.reports(4)[1], "running": None})  # it had finished its share
    assert files.died(4) == [2]


def test_cleaning_removes_this_launch_and_what_is_old(files):
    other, old = ReportFolder(files.folder, "other"), ReportFolder(files.folder, "old")
    for one in (files, other, old):
        WorkerReport(one, 1)
        one.claims.mkdir()
        (one.claims / "0").touch()
    files.log(1).touch()
    for path in (old.report(1), old.claims, files.log(1)):
        os.utime(path, (time.time() - OUTDATED - 9,) * 2)
    files.clean()
    left = {path.name for path in files.folder.iterdir()}
    assert left == {"other.1.json", "other.claims", "1.log"}


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_workers_share_where_there_are_locks(files, monkeypatch):
    assert files.has_locks() and not files.claims.exists()
    monkeypatch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(NotImplementedError()))
    assert not files.has_locks()


def test_a_report_that_is_not_there_yet_is_left_out(files):
    WorkerReport(files, 1)
    files.report(2).write_text("{")
    assert list(files.reports(3)) == [1]
    with claimed(files.claims, "0") as is_mine:
        assert is_mine
