"""Jobs in workers: each runs once, workers take over what others leave, and errors come home as text."""

from __future__ import annotations

import pickle
import threading
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from latentwire.harness import launching
from latentwire.harness.claims import claimed
from latentwire.harness.errors import UserError
from latentwire.harness.grids import Job
from latentwire.harness.launching import JobOutcome, Means, ShareFunction, launch_in_workers
from latentwire.harness.results import DamagedResultError, ResultWriteError, write_json
from latentwire.harness.session import Session, Task
from latentwire.harness.worker_reports import ReportFolder, WorkerReport
from tests.helpers import launched

TASKS = {"note": Task(run="tests.helpers.launched:note", costs="tests.helpers.launched:costs")}
CONFIG = OmegaConf.create("{task: note, hydra: {launcher: {_target_: tests.helpers.launched.Launcher}}}")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(launching, "POLL", 0.01)
    monkeypatch.setattr(launching, "REPORTS", "workers")


def jobs(folder: Path, count: int, **more: object) -> list[Job]:
    base = {"task": "note", "out": str(folder), "force": False, "fails": [], **more}
    return [Job([], OmegaConf.create({**base, "name": f"job{number}"})) for number in range(count)]


def sweep(folder: Path, count: int, workers: int, **more: object) -> list[object]:
    session = Session("run", TASKS, sweeping=True, workers=workers)
    return launch_in_workers(launched.Launcher(), None, CONFIG, session, jobs(folder, count, **more))


def done(folder: Path) -> list[str]:
    """Return the names of the jobs that ran, in order."""
    return [line.split()[0] for line in (folder / "ran").read_text().splitlines()] if (folder / "ran").exists() else []


def function_of(folder: Path, shares: list[list[int]], *, takes_over: bool = True) -> ShareFunction:
    """Return the function of workers whose parent is another process, so that they write into their logs."""
    count = sum(map(len, shares))
    configs = [job.config for job in jobs(folder, count)]
    files = ReportFolder(folder / "workers", "launch")
    files.folder.mkdir(parents=True, exist_ok=True)
    names = [str(config.name) for config in configs]
    return ShareFunction(Session("run", TASKS), names, configs, shares, files, Means(), takes_over, maker=0)


def run_worker(function: ShareFunction, number: int) -> list[JobOutcome]:
    launched.be_worker(number)
    return function(OmegaConf.create({}))


@pytest.mark.parametrize(("count", "workers"), [(5, 2), (1, 3), (4, 1)])
def test_the_results_are_in_order_and_each_job_runs_once(tmp_path, count, workers):
    assert sweep(tmp_path, count, workers) == [{"name": f"job{n}", "status": "ok"} for n in range(count)]
    assert sorted(done(tmp_path)) == [f"job{number}" for number in range(count)]
    assert [path.name for path in (tmp_path / "workers").iterdir()] == []  # run in this process, without logs


def test_finished_jobs_are_read_here(tmp_path, capfd):
    """Their cost is 0. If no other job is left, no worker begins."""
    for number in (0, 2):
        (tmp_path / f"job{number}.done").touch()
    assert len(sweep(tmp_path, 4, 2)) == 4
    assert done(tmp_path)[:2] == ["job0", "job2"] and len(done(tmp_path)) == 4
    assert "jobs: 2, workers: 2" in capfd.readouterr().err
    for number in (1, 3):
        (tmp_path / f"job{number}.done").touch()
    assert len(sweep(tmp_path, 4, 2)) == 4
    assert "workers:" not in capfd.readouterr().err


def test_a_worker_takes_over_what_others_have_not_begun(tmp_path):
    """It runs its own share first, then the jobs of the next worker from the end; that one then has none left."""
    function = function_of(tmp_path, [[0, 1], [2, 3]])
    assert [outcome.place for outcome in run_worker(function, 1)] == [0, 1, 3, 2]
    assert run_worker(function, 2) == []
    assert done(tmp_path) == ["job0", "job1", "job3", "job2"]


def test_without_locks_a_worker_runs_its_own_share_alone(tmp_path):
    function = function_of(tmp_path, [[0, 1], [2, 3]], takes_over=False)
    assert [outcome.place for outcome in run_worker(function, 1)] == [0, 1]
    assert [outcome.place for outcome in run_worker(function, 2)] == [2, 3]


def test_a_job_that_another_worker_runs_is_left_to_it(tmp_path):
    """It is skipped in the share of another. In the own share it is waited for, and not run again."""
    function = function_of(tmp_path, [[0], [1]])
    with claimed(function.files.claims, "1"):
        assert [outcome.place for outcome in run_worker(function, 1)] == [0]
    function = function_of(tmp_path / "two", [[0], [1]])
    other = WorkerReport(function.files, 1)

    def end_later() -> None:
        time.sleep(0.1)
        other.end(1)

    with claimed(function.files.claims, "1"):
        thread = threading.Thread(target=end_later)
        thread.start()
        assert [outcome.place for outcome in run_worker(function, 2)] == [0]
        thread.join()


def test_a_job_that_ends_elsewhere_meanwhile_is_not_run_again(tmp_path, monkeypatch):
    """Another worker finishes the second job while this one runs the first."""
    function, real = function_of(tmp_path, [[0, 1], []]), launched.note

    def note(cfg, session):
        WorkerReport(function.files, 2).end(1)
        return real(cfg, session)

    monkeypatch.setattr(launched, "note", note)
    assert [outcome.place for outcome in run_worker(function, 1)] == [0]


@pytest.mark.parametrize("backwards", [False, True])
def test_an_error_that_another_worker_did_not_meet_is_none(tmp_path, monkeypatch, backwards):
    """The worker that begins stops at it, and the other one runs the job."""
    monkeypatch.setattr(launched.Launcher, "backwards", backwards)
    real, failures = launched.note, [UserError("no memory; wait")]

    def note(cfg, session):
        if failures:
            raise failures.pop()
        return real(cfg, session)

    monkeypatch.setattr(launched, "note", note)
    assert [result["name"] for result in sweep(tmp_path, 2, 2)] == ["job0", "job1"]
    assert done(tmp_path) == (["job0", "job1"] if backwards else ["job1", "job0"])


def test_a_job_of_another_command_is_waited_for(tmp_path):
    """The log says for whom, once; the job is run as soon as it is free."""
    (tmp_path / "job1.busy").touch()
    timer = threading.Timer(0.2, (tmp_path / "job1.busy").unlink)
    timer.start()
    function = function_of(tmp_path, [[1, 0]])
    assert [outcome.place for outcome in run_worker(function, 1)] == [0, 1]
    assert function.files.log(1).read_text().count("waiting: job1 is busy\n") == 1


def test_a_restarted_worker_does_not_force_what_it_had_done(tmp_path):
    function = function_of(tmp_path, [[0, 1]])
    for config in function.configs:
        config.force = True
    before = WorkerReport(function.files, 1)
    before.begin("job0")
    before.end(0)
    run_worker(function, 1)
    assert (tmp_path / "ran").read_text().splitlines() == ["job0 False", "job1 True"]
    assert function.configs[0].force


def test_an_error_of_the_user_ends_the_worker_with_its_text(tmp_path):
    with pytest.raises(UserError) as raised:
        sweep(tmp_path, 3, 1, fails=["job1"])
    assert str(raised.value) == "job1: job1=x: must be y; give y (1 of 3 jobs are finished and kept)"
    assert done(tmp_path) == ["job0"]


def test_different_errors_are_listed(tmp_path):
    with pytest.raises(UserError) as raised:
        sweep(tmp_path, 4, 2, fails=["job1", "job2"])
    first, *others = str(raised.value).splitlines()
    assert first == "1 of 4 jobs are finished and kept; others stopped:"
    assert sorted(others) == [f"  job{number}: job{number}=x: must be y; give y" for number in (1, 2)]


def test_a_bug_names_the_log_with_its_traceback(tmp_path):
    """Its exception needs two arguments, so pickle cannot bring it home."""
    function = function_of(tmp_path, [[0]])
    function.configs[0].fails = ["bug"]
    (outcome,) = run_worker(function, 1)
    log = function.files.log(1)
    assert outcome.error == f"TwoPartError: it: is broken; the traceback is in {log}"
    assert "Traceback (most recent call last)" in log.read_text() and "launched.py" in log.read_text()


def test_an_error_in_the_share_of_another_is_left_to_it(tmp_path):
    function = function_of(tmp_path, [[0], [1]])
    function.configs[1].fails = ["job1"]
    assert [(outcome.place, outcome.error) for outcome in run_worker(function, 1)] == [(0, None)]
    (outcome,) = run_worker(function, 2)
    assert outcome.place == 1 and outcome.error is not None and "must be y" in outcome.error


def test_a_launcher_that_starts_nothing_is_named(tmp_path):
    session = Session("run", TASKS, sweeping=True, workers=2)
    message = r"the launcher started no worker \(RuntimeError: no srun here\); check its settings"
    with pytest.raises(UserError, match=message):
        launch_in_workers(launched.BrokenLauncher(), None, CONFIG, session, jobs(tmp_path, 2))


def test_an_interrupted_command_names_the_workers_that_go_on(tmp_path, monkeypatch, capfd):
    """The tasks of a cluster do not end with the command."""

    def launch(launcher, shares, initial_job_idx):
        files = launcher.function.files
        report = WorkerReport(files, 1)
        report.begin("job0")
        write_json(files.report(1), {**report.report, "host": "node7"})
        raise KeyboardInterrupt

    monkeypatch.setattr(launched.Launcher, "launch", launch)
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path, 2, 2)
    note = "note: worker 1 (job0 on node7) may still run; the same command shares the rest with them"
    assert note in capfd.readouterr().err


def test_the_function_needs_nothing_of_its_process(tmp_path):
    """A pickled copy does the same, with a session that builds its own objects."""
    function = pickle.loads(pickle.dumps(function_of(tmp_path, [[0, 1]])))
    assert function.session.remote
    assert [outcome.value["name"] for outcome in run_worker(function, 1)] == ["job0", "job1"]


@pytest.mark.parametrize(
    "error", [UserError("x=1: no; y"), ResultWriteError(Path("a"), "full", "b=C"), DamagedResultError("a is broken")]
)
def test_errors_of_the_user_survive_pickling(error):
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), str(error))


def test_threads_and_devices_are_divided_among_workers(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    means = Means.of_this_machine(3)
    assert means == Means(2, ("4", "7")) and Means.of_this_machine(9).threads == 1
    set_to: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    taken = []
    for number in (1, 2, 3):
        means.take(number)
        taken.append((launching.os.environ["OMP_NUM_THREADS"], launching.os.environ["CUDA_VISIBLE_DEVICES"]))
    assert set_to == [2, 2, 2] and taken == [("2", "4"), ("2", "7"), ("2", "4")]
