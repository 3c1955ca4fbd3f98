"""Sweeps in the workers of Hydra's launchers: the same results as in one process, kills, errors, two commands at once.

Most commands run in this process, so the workers of joblib are started once and used again.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers.files import read_json
from tests.helpers.paths import ROOT
from tests.helpers.plugins import forgotten_afterwards
from tests.helpers.programs import command, environment
from tests.helpers.results import without_timings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

# A transform that waits while the file `closed` is there, and notes each evaluation.
PLUGIN = """
import os, time
from pathlib import Path
from latentwire.transforms.base import Transform, register_transform

HERE = Path(__file__).parent


class TwoPartError(Exception):
    def __init__(self, what, why):
        super().__init__(f"{what}: {why}")


@register_transform("gate", label="gate")
class Gate(Transform):
    def __init__(self, vocabulary):
        super().__init__(vocabulary)
        self.met = False

    def repair(self, x, generator):
        if not self.met:
            self.met = True
            with (HERE / "met").open("a") as file:
                file.write(f"{os.getpid()}\\n")
        while (HERE / "closed").exists():
            time.sleep(0.01)
        if (HERE / "broken").exists():
            raise TwoPartError("gate", "is broken")
        return x * 1.01
"""
TINY = ["model=tiny_random", "samples=6", "shots=1", "max_new_tokens=4", "plugins=[gates]"]
SWEEP = ["-m", *TINY, "embed_transform=baseline,gate"]
JOBLIB = ["hydra/launcher=joblib", "workers=2"]
SLURM = ["hydra/launcher=slurm_local", "workers=2"]
RAY = ["hydra/launcher=ray", "workers=2"]
NAMES = ["baseline", "control_empty", "control_random", "control_scrambled_gate", "gate"]
MACHINE = ("device", "git_commit", "workers", "out")  # what differs between machines, moments and folders
no_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: latentwire[ray]")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the working folder of all commands, with the plugin."""
    folder = tmp_path_factory.mktemp("launchers")
    (folder / "gates.py").write_text(PLUGIN, encoding="utf-8")
    with forgotten_afterwards(folder):
        yield folder


@pytest.fixture
def run(cli, place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Return the command line in the common folder; workers find the code and the plugin."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{place}")
    yield cli
    for name in ("closed", "broken"):
        (place / name).unlink(missing_ok=True)


def comparable(folder: Path) -> Any:
    """Return the summary of a sweep without times, machine and folder."""

    def kept(node: Any) -> Any:
        if isinstance(node, dict):
            return {name: kept(value) for name, value in node.items() if name not in MACHINE}
        return [kept(one) for one in node] if isinstance(node, list) else node

    return kept(without_timings(read_json(folder / "summary.json")))


@pytest.fixture
def undisturbed(run, place: Path) -> Any:
    """Return the summary of the sweep in one process, which runs once for all tests."""
    if not (place / "basic/summary.json").exists():
        (place / "met").unlink(missing_ok=True)
        status, _, err = run(*SWEEP, "out=basic")
        assert status == 0, err
        (place / "met").rename(place / "once")
    return comparable(place / "basic")


def written(folder: Path) -> dict[str, int]:
    """Return the time of each finished result."""
    return {name: (folder / f"{name}.json").stat().st_mtime_ns for name in NAMES if (folder / f"{name}.json").exists()}


def times_evaluated(place: Path) -> float:
    """Return how often the two configurations with the gate were evaluated, in times of the undisturbed sweep."""
    met, once = ((place / name).read_text().count("\n") for name in ("met", "once"))
    return met / once


def wait_until(reached: Callable[[], object], timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def reports(folder: Path) -> list[dict]:
    """Return what the workers of a sweep report."""
    found = []
    for path in folder.glob("workers/*.json"):
        with contextlib.suppress(FileNotFoundError):
            found.append(json.loads(path.read_text()))
    return found


def worker_at(name: str, folder: Path) -> dict | None:
    """Return the report of the worker that runs a job."""
    return next((each for each in reports(folder) if each["running"] == name), None)


def in_the_middle(folder: Path) -> bool:
    """Return whether one worker waits at the gate and all other jobs are finished."""
    return worker_at("gate", folder) is not None and len(written(folder)) == 3


def runs(pid: int) -> bool:
    """Return whether a process runs."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@dataclass
class Program:
    """A process of run.py in the common folder, in a group of its own, that writes into two files."""

    place: Path
    name: str
    arguments: list[str]

    def __post_init__(self) -> None:
        with self.path("out").open("w") as out, self.path("err").open("w") as err:
            self.process = subprocess.Popen(
                command("run", *self.arguments), cwd=self.place, env=environment(), stdout=out, stderr=err,
                start_new_session=True,
            )  # fmt: skip

    def path(self, stream: str) -> Path:
        return self.place / f"{self.name}.{stream}"

    def err(self) -> str:
        return self.path("err").read_text()

    def end(self) -> int:
        return self.process.wait(60)


@pytest.mark.parametrize(
    "launcher", [JOBLIB, SLURM, pytest.param(RAY, marks=no_ray)], ids=["joblib", "slurm_local", "ray"]
)
def test_every_launcher_gives_the_same_summary(run, place, undisturbed, launcher):
    """Each configuration is evaluated once, and a failed one is a result with its error."""
    name = launcher[0].partition("=")[2]
    (place / "met").unlink(missing_ok=True)
    status, out, err = run(*SWEEP, *launcher, f"out={name}")
    assert status == 0, err
    assert comparable(place / name) == undisturbed
    assert "Verdict:" in out and "worker 1  " in err and "worker 2  " in err
    assert times_evaluated(place) == 1
    assert sorted(path.name for path in (place / name / "workers").iterdir()) == ["1.log", "2.log"]


def test_a_finished_sweep_starts_no_worker(run, place, undisturbed):
    """`only` and `force` evaluate again what they name, and `task=list` lists the same."""
    (place / "resumed").mkdir()
    for path in (place / "basic").glob("*.json*"):
        (place / "resumed" / path.name).write_bytes(path.read_bytes())
    before, sweep = written(place / "resumed"), [*SWEEP, *JOBLIB, "out=resumed"]
    status, _, err = run(*sweep)
    assert status == 0, err
    assert err.count("(finished before)") == 5 and written(place / "resumed") == before
    assert not (place / "resumed/workers").exists()
    assert comparable(place / "resumed") == undisturbed
    status, _, err = run(*sweep, "only=base*", "force=true")
    assert status == 0, err
    again = {name for name, time in written(place / "resumed").items() if time != before[name]}
    assert again == {"baseline", "control_empty", "control_random"}
    assert run(*sweep, "task=list")[:2] == run(*SWEEP, "out=resumed", "task=list")[:2]


def test_a_sweep_with_a_generous_budget_is_whole(run, place, undisturbed):
    """Its rounds are launched one after the other, with the decisions that one process makes."""
    found = []
    for name, launcher in (("budget_basic", []), ("budget_joblib", JOBLIB)):
        status, _, err = run(*SWEEP, *launcher, "budget_minutes=60", f"out={name}")
        assert status == 0, err
        summary = comparable(place / name)
        assert (summary["budget"]["first"], summary["budget"]["halvings"]) == (6, [])
        found.append({key: value for key, value in summary.items() if key != "budget"})
    assert found[0] == found[1]


def test_a_screening_gives_the_same_scores(place, trains, run):
    """Its rounds promote the same candidate."""
    candidates = ["{embed_transform:baseline}", "{embed_transform:rms_matching,target_scale:1.0}"]
    training = ["-m", "sweep=latent_screen", f"sweep.grids=[{','.join(candidates)}]", "model=tiny_random", "samples=12",
                "shots=1", "adapter_hidden=16", "d_z=8", "epochs=2", "sweep.rounds=[1,2]", "judge_by=cosine",
                "device=cpu", "dtype=float32"]  # fmt: skip
    rounds = []
    for name, launcher in (("screen_basic", []), ("screen_joblib", JOBLIB)):
        status, _, err = trains(*training, *launcher, f"out={name}/${{name}}")
        assert status == 0, err
        assert ("worker 1  " in err) == bool(launcher)
        (path,) = (place / name).glob("screen.json")
        rounds.append([[(row["candidate"], row["scores"]) for row in judged["ranking"]]
                       for judged in read_json(path)["rounds"]])  # fmt: skip
    assert rounds[0] == rounds[1] and [len(judged) for judged in rounds[0]] == [2, 1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["workers=2"], "workers=2: divides the configurations of a sweep, and needs a launcher; add -m and"),
        (["-m", "workers=2"], "workers=2: divides the configurations of a sweep, and needs a launcher"),
        (JOBLIB, "hydra/launcher=joblib: divides the jobs of a sweep; add -m, or leave it out"),
        (["-m", JOBLIB[0], "workers=0"], "workers=0: must be a whole number of processes, at least 1"),
        (["-m", JOBLIB[0], "workers=1,2"], "workers=1,2: a launcher has one number of workers for the whole sweep"),
        (["-m", "hydra/launcher=slurm"], "workers: this launcher has no number of workers by itself; give workers=N"),
        (["-m", "hydra/launcher=nope"], "hydra/launcher=nope: unknown; use one of basic, joblib, ray, slurm"),
    ],
)
def test_a_wrong_launcher_or_number_is_refused(run, place, given, message):
    status, out, err = run(*given, *TINY, "out=refused")
    assert (status, out) == (1, "") and err.splitlines()[-1].startswith(f"error: {message}"), err
    assert "Traceback" not in err and not list(place.glob("refused/*"))


def test_a_failed_configuration_is_a_result_with_its_error(run, place):
    (place / "broken").touch()
    status, _, err = run(*SWEEP, *JOBLIB, "out=failing")
    assert status == 1
    result = read_json(place / "failing/gate.json")
    assert result["status"] == "failed" and result["error"].startswith("TwoPartError: gate: is broken; see")
    assert "Traceback" in result["traceback"] and "Traceback" not in err
    assert "1 of 2 configurations failed" in err
    summary = read_json(place / "failing/summary.json")
    assert (summary["successful"], summary["failed"]) == (1, 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["samples=100000"], "samples=100000"),  # found in a worker
        (["data=file", "path=nowhere.jsonl"], "nowhere.jsonl: no such file"),  # found before
    ],
)
def test_an_error_of_the_user_is_one_line(run, given, message):
    status, out, err = run("-m", *TINY, *given, *JOBLIB, "out=wrong")
    assert (status, out) == (1, "")
    assert err.splitlines()[-1].startswith("error: ") and message in err.splitlines()[-1], err
    assert "Traceback" not in err


@contextlib.contextmanager
def killed_at_the_gate(place: Path, folder: Path) -> Iterator[None]:
    """Close the gate, and kill the worker that waits at it while the block runs the sweep."""
    (place / "closed").touch()

    def kill() -> None:
        wait_until(lambda: in_the_middle(folder))
        time.sleep(0.5)  # until the other worker has seen that nothing is left for it
        report = worker_at("gate", folder)
        assert report is not None
        os.kill(report["pid"], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    yield
    thread.join()


@pytest.mark.parametrize("launcher", [JOBLIB, SLURM], ids=["joblib", "slurm_local"])
def test_a_killed_worker_loses_nothing_finished(run, place, undisturbed, launcher):
    """One message says what died. The same command finishes, and evaluates no finished configuration again."""
    folder = place / f"{launcher[0].partition('=')[2]}_killed"
    sweep = [*SWEEP, *launcher, f"out={folder.name}"]
    with killed_at_the_gate(place, folder):
        status, out, err = run(*sweep)
    assert (status, out) == (1, "")
    message = err.splitlines()[-1]
    assert re.match(r"error: .*worker [12] \(gate[ 0-9/]*\).* ended before its jobs \(\w+: ", message), err
    assert "3 of 4 jobs are finished and kept; " in message
    assert message.endswith(f"the logs are in {folder}/workers; run the same command again to finish the rest")
    assert err.count("error:") == 1 and "Traceback" not in err
    (place / "closed").unlink()  # the other worker may have taken over the job at the gate
    wait_until(lambda: not [each for each in reports(folder) if runs(each["pid"])])
    before = written(folder)
    status, _, err = run(*sweep)
    assert status == 0, err
    assert err.count("(finished before)") >= 3
    assert {name: written(folder)[name] for name in before} == before
    assert comparable(folder) == undisturbed


def interrupted(place: Path, folder: Path, launcher: list[str], number: int) -> tuple[int, str, list[dict]]:
    """Send a signal to the parent process while a worker waits at the gate; return status, messages and reports."""
    (place / "closed").touch()
    running = Program(place, f"{folder.name}_first", [*SWEEP, *launcher, f"out={folder.name}"])
    wait_until(lambda: in_the_middle(folder))
    found = reports(folder)
    running.process.send_signal(number)
    return running.end(), running.err(), found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_workers_of_joblib_end_with_the_command(run, place, undisturbed, number):
    folder = place / f"ended{number}"
    status, err, found = interrupted(place, folder, JOBLIB, number)
    wait_until(lambda: not [each for each in found if runs(each["pid"])], 20)
    assert "Traceback" not in err and len(found) == 2
    if number == signal.SIGINT:
        assert status == 130
        assert err.splitlines()[-1] == "interrupted; run the same command again to finish the rest"
    before = written(folder)
    (place / "closed").unlink()
    status, _, err = run(*SWEEP, *JOBLIB, f"out={folder.name}")
    assert status == 0, err
    assert {name: written(folder)[name] for name in before} == before and len(before) == 3
    assert comparable(folder) == undisturbed


def test_the_tasks_of_submitit_outlive_the_command(run, place, undisturbed):
    """The next command waits for them and evaluates nothing a second time."""
    folder = place / "outlived"
    (place / "met").unlink(missing_ok=True)
    status, _, found = interrupted(place, folder, SLURM, signal.SIGKILL)
    assert status == -signal.SIGKILL and any(runs(each["pid"]) for each in found)
    second = Program(place, "outlived_second", [*SWEEP, *JOBLIB, f"out={folder.name}"])
    wait_until(lambda: "waiting: gate" in (folder / "workers/1.log").read_text())
    (place / "closed").unlink()
    assert second.end() == 0, second.err()
    assert re.search(r"worker 1  waiting: gate: process \d+ on \S+, since .* is at work on it", second.err())
    assert times_evaluated(place) == 1
    assert comparable(folder) == undisturbed


def test_two_commands_in_one_folder_share_it(run, place, undisturbed):
    """The second names the process it waits for; every configuration is evaluated once."""
    folder = place / "two"
    for name in ("met", "closed"):
        (place / name).unlink(missing_ok=True)
    (place / "closed").touch()
    first, second = (Program(place, f"two_{number}", [*SWEEP, "out=two"]) for number in (1, 2))
    wait_until(lambda: f"gate: waiting for process {first.process.pid} on " in second.err()
               or f"gate: waiting for process {second.process.pid} on " in first.err())  # fmt: skip
    (place / "closed").unlink()
    for one in (first, second):
        assert one.end() == 0, one.err()
        assert "Verdict:" in one.path("out").read_text()
    assert times_evaluated(place) == 1 and not (folder / "claims").exists()
    assert comparable(folder) == undisturbed
