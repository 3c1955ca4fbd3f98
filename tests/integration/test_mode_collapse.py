"""The task mode_collapse: runs shared by processes, kills, failures, more seeds, and the verdict at the end."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kat.collapse import training
from kat.collapse.runs import find_runs
from latentwire.harness import worker_reports
from latentwire.harness.app import compose_config
from latentwire.harness.claims import claimed
from latentwire.harness.grids import expand, factors
from latentwire.harness.results import ResultWriteError
from tests.helpers.files import read_json
from tests.helpers.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

WORLD = [
    "task=world", "world.topics=4", "world.prompts=120", "world.attributes=2", "base.hidden_size=64",
    "base.intermediate_size=128", "base.heads=2", "steps=60", "base.lines_per_step=32", "optimizer.learning_rate=8e-3",
]  # fmt: skip
SMALL = [
    "-m", "experiment=mode_collapse", "experiment_folder=runs", "steps=4", "grpo.eval_every=2", "grpo.eval_prompts=6",
    "grpo.eval_generations=4", "grpo.num_generations=4", "grpo.prompts_per_step=2", "checkpoint_every=1",
    "collapse.control_seeds=[50]", "seeds=2", "device=cpu",
]  # fmt: skip
FEW = "only=uniform_seed*|density_seed*"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("world") / "world"


@pytest.fixture
def worlds(world: Path, tmp_path: Path, trains) -> Path:
    """The folder of an experiment that has its worlds: copies of one that is made once."""
    if not world.exists():
        assert trains(*WORLD, f"out={world}")[0] == 0
    for seed in (0, 1, 2, 50):
        shutil.copytree(world, tmp_path / "runs" / "worlds" / f"seed{seed}")
    return tmp_path / "runs"


def program(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, str(ROOT / "train.py"), *arguments], text=True, env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def finished(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("*_seed*/result.json"))


def steps(folder: Path) -> int:
    """Return the number of steps that are in the journals of all runs."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("*_seed*/metrics.jsonl"))


def test_all_arms_run_and_end_in_a_verdict(worlds, trains, cli):
    """Every arm differs from uniform in its own setting, and a second command trains nothing."""
    status, out, err = trains(*SMALL)
    assert status == 0, err
    arms = ["density", "deduplicated", "entropy", "novelty", "oracle", "reversed", "shuffled", "uniform_again"]
    assert finished(worlds) == sorted([f"{arm}_seed{seed}" for arm in [*arms, "uniform"] for seed in "01"]
                                      + ["uniform_seed50"])  # fmt: skip
    configs = {
        run.parent.name.split("_seed")[0]: json.loads(run.read_text()) for run in worlds.glob("*_seed0/config.json")
    }
    assert {arm for arm, config in configs.items() if config["grpo"]["entropy_coef"]} == {"entropy"}
    assert {arm for arm, config in configs.items() if "novelty" in config["grpo"]["reward_funcs"]} == {"novelty"}
    assert {arm for arm, config in configs.items() if config["grpo"]["sampling_stream"]} == {"uniform_again"}
    verdict = json.loads((worlds / "verdict.json").read_text())
    assert verdict["answer"] == "no_verdict" and (worlds / "verdict.html").is_file()
    assert out.strip().endswith(verdict["sentence"])
    assert not list(worlds.glob("claims/*")) and not list(worlds.glob("*_seed*/*/*.safetensors"))

    before = {path: path.stat().st_mtime_ns for path in worlds.glob("*_seed*/result.json")}
    status, _, err = trains(*SMALL)
    assert status == 0, err
    assert {path: path.stat().st_mtime_ns for path in worlds.glob("*_seed*/result.json")} == before

    status, _, err = cli("task=verdict", "folder=runs", "out=again")
    assert status == 0, err
    assert json.loads(Path("again/verdict.json").read_text()) == verdict

    for given, message in (
        ("collapse.margin_share=0.2", "collapse.margin_share=0.2: runs was begun with 0.1"),
        ("steps=6", "steps=6: runs was begun with 4"),
        ("optimizer.learning_rate=1e-5", "optimizer.learning_rate=1e-05: runs was begun with 0.001"),
    ):
        status, _, err = trains(*[a for a in SMALL if not a.startswith("steps=")], "steps=4", given)
        assert status == 1 and message in err and "fixed before the runs" in err
    record = json.loads((worlds / "experiment.json").read_text())
    (worlds / "experiment.json").write_text(json.dumps({**record, "seeds": [2, 4]}))
    assert cli("task=verdict", "folder=runs", "out=again")[0] == 0
    assert "planned with 2 seeds and run with 4" in json.loads(Path("again/verdict.json").read_text())["warnings"][-1]


def test_the_truth_at_an_evaluation_is_the_truth_of_the_policy(worlds, trains, cli):
    """The last evaluation measures the policy that is saved, for the evaluated prompts alone."""
    status, _, err = trains(*SMALL, "only=uniform_seed0", "keep_policies=true")
    assert status == 0, err
    rows = [json.loads(line) for line in (worlds / "uniform_seed0" / "held_out_truth.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0] * 6 + [2] * 6 + [4] * 6
    status, _, err = cli("task=truth", "policy=runs/uniform_seed0", "prompts_file=runs/worlds/seed0/prompts.jsonl",
                         "out=truth")  # fmt: skip
    assert status == 0, err
    whole = {row["id"]: row for row in map(json.loads, Path("truth/truth.jsonl").read_text().splitlines())}
    for row in rows[-6:]:
        assert row["entropy"] == pytest.approx(whole[row["id"]]["entropy"], abs=1e-4)
        assert row["validity"] == pytest.approx(whole[row["id"]]["validity"], abs=1e-4)
    assert rows[0]["entropy"] != pytest.approx(rows[-6]["entropy"], abs=1e-4)


def test_the_arm_again_has_the_order_but_not_the_draws(worlds, trains):
    status, _, err = trains(*SMALL, "only=uniform_seed0|uniform_again_seed0")
    assert status == 0, err
    one, other = worlds / "uniform_seed0", worlds / "uniform_again_seed0"
    assert (one / "ledger.jsonl").read_text() == (other / "ledger.jsonl").read_text()
    assert (one / "completions.jsonl").read_text() != (other / "completions.jsonl").read_text()


def test_workers_share_the_runs_and_more_seeds_extend_them(worlds, trains):
    """One run is claimed by a process that does not do it before the others are done."""
    running = program(*SMALL, FEW, "workers=2")
    _, err = running.communicate(timeout=500)
    assert running.returncode == 0, err
    runs = finished(worlds)
    assert runs == ["density_seed0", "density_seed1", "uniform_seed0", "uniform_seed1", "uniform_seed50"]
    assert "5 of 5 runs are finished" in err, err
    before = (worlds / "density_seed1" / "result.json").stat().st_mtime_ns
    status, _, err = trains(*[a for a in SMALL if a != "seeds=2"], FEW, "seeds=3")
    assert status == 0, err
    assert set(finished(worlds)) - set(runs) == {"density_seed2", "uniform_seed2"}
    assert (worlds / "density_seed1" / "result.json").stat().st_mtime_ns == before


def test_workers_of_a_launcher_give_the_same_verdict(worlds, trains, cli, tmp_path, monkeypatch):
    """The parent reports the runs that are done and the time left. A second command trains nothing."""
    monkeypatch.setattr(worker_reports, "PLAIN_INTERVAL", 0.0)
    shutil.copytree(worlds, tmp_path / "alone" / "runs")
    launched = [*SMALL, FEW, "hydra/launcher=joblib", "workers=2"]
    status, _, err = trains(*launched)
    assert status == 0, err
    assert "jobs: 5, workers: 2; their logs are in " in err and "5 of 5 runs are finished" in err
    assert re.search(r"^workers  \d/5 done  \d+ s left  ", err, re.MULTILINE), err
    policies = [re.findall(r"^policy: runs/(\w+)/model", path.read_text(), re.MULTILINE)
                for path in sorted(worlds.glob("workers/*.log"))]  # fmt: skip
    assert sorted(name for names in policies for name in names) == finished(worlds)
    before = {path: path.stat().st_mtime_ns for path in worlds.glob("*_seed*/result.json")}
    status, _, err = trains(*launched)
    assert status == 0 and "5 of 5 runs are finished" in err and "jobs: " not in err, err
    assert {path: path.stat().st_mtime_ns for path in worlds.glob("*_seed*/result.json")} == before

    assert cli("task=verdict", "folder=runs", "out=verdict")[0] == 0
    found = read_json("verdict/verdict.json")
    monkeypatch.chdir(tmp_path / "alone")
    assert trains(*SMALL, FEW, "workers=1")[0] == 0
    for name in finished(worlds):
        for file in ("completions.jsonl", "ledger.jsonl", "metrics.jsonl"):
            assert (worlds / name / file).read_text() == Path("runs", name, file).read_text(), (name, file)
    assert cli("task=verdict", "folder=runs", "out=verdict")[0] == 0
    assert read_json("verdict/verdict.json") == found


def test_a_preset_of_one_process_runs_by_what_a_launcher_has(trains):
    """Its setting for a large GPU does not fix the number of workers."""
    status, _, err = trains("-m", "sweep=mode_collapse_smollm2", "seeds=1", "hydra/launcher=joblib")
    assert status == 1 and re.search(r"^\d+ workers: .*; workers=N sets another number$", err, re.MULTILINE), err
    assert "seeds: 1 compared seeds have runs of both" in err


def test_a_claimed_run_is_waited_for(worlds):
    with claimed(worlds / "claims", "density_seed0"):
        running = program(*SMALL, FEW)
        deadline = time.monotonic() + 300
        while len(finished(worlds)) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "density_seed0" not in finished(worlds) and running.poll() is None
    _, err = running.communicate(timeout=300)
    assert running.returncode == 0, err
    assert "density_seed0" in finished(worlds)


def test_a_failed_run_leaves_the_others_and_is_tried_again(worlds, trains):
    path = worlds / "worlds" / "seed1" / "model" / "model.safetensors"
    content = path.read_bytes()
    path.unlink()
    status, _, err = trains(*SMALL, FEW)
    assert status == 1
    assert finished(worlds) == ["density_seed0", "uniform_seed0", "uniform_seed50"]
    assert "error: 2 of 5 runs failed, such as uniform_seed1: " in err and "tries them again" in err
    failed = json.loads((worlds / "density_seed1" / "failed.json").read_text())
    assert (failed["arm"], failed["seed"]) == ("density", 1) and "model" in failed["error"]
    states = {(run.arm, run.seed): run.status for run in find_runs(worlds)}
    assert states["density", 1] == "failed" and states["density", 0] == "finished"
    path.write_bytes(content)
    status, _, err = trains(*SMALL, FEW)
    assert status == 0, err
    assert "density_seed1" in finished(worlds) and not (worlds / "density_seed1" / "failed.json").exists()


def test_killed_at_any_moment_the_runs_are_the_same(worlds, trains, cli, tmp_path):
    """Killed five times, each time two steps later, the experiment ends like one that was not killed."""
    whole = Path(shutil.copytree(worlds, tmp_path / "whole"))
    status, _, err = trains(*SMALL, FEW, "experiment_folder=whole")
    assert status == 0, err
    for _ in range(5):
        before = steps(worlds)
        running = program(*SMALL, FEW, "workers=2")
        while steps(worlds) < before + 2:
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
        running.communicate()  # ends when its worker has ended too
    status, _, err = trains(*SMALL, FEW)
    assert status == 0, err
    assert finished(worlds) == finished(whole)
    for name in finished(whole):
        for file in ("completions.jsonl", "ledger.jsonl", "metrics.jsonl"):
            assert (worlds / name / file).read_text() == (whole / name / file).read_text(), (name, file)
    verdicts = []
    for folder in ("runs", "whole"):
        status, _, err = cli("task=verdict", f"folder={folder}", "out=verdict")
        assert status == 0, err
        found = json.loads(Path("verdict/verdict.json").read_text())
        verdicts.append({key: found[key] for key in ("answer", "sentence", "gate", "primary", "topics", "margins")})
    assert verdicts[0] == verdicts[1]


def test_a_single_run_of_the_task_is_refused(trains):
    """Without -m nothing would plan the runs."""
    status, _, err = trains("task=mode_collapse", "device=cpu")
    assert status == 1 and "task=mode_collapse: is an experiment of many runs; begin with python train.py -m" in err


def test_a_full_disk_ends_the_command_and_names_the_folder(worlds, trains, monkeypatch):
    """No other run is tried, because it would meet the same disk."""

    def full(*_, **__):
        raise ResultWriteError(Path("runs/x"), "No space left on device")

    monkeypatch.setattr(training, "grpo", full)
    status, _, err = trains(*SMALL, FEW)
    assert status == 1 and "experiment_folder=FOLDER" in err and not list(worlds.glob("*_seed*/failed.json"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["force=true"], "force=true: move runs away to train its runs again"),
        (["seeds=1"], "seeds: 1 compared seeds have runs of both uniform and density"),
        (["collapse.arm=nope"], "collapse.arm=nope: this experiment has no runs of nope (its arms: uniform, density"),
        (["collapse.measure=nope"], "collapse.measure=nope: must be auto or a measure with a direction: entropy_valid"),
        (["grpo.eval_every=0"], "grpo.eval_every=0: must be at least 1"),
        (["grpo.reward_funcs=[nope]"], "reward_funcs=[nope]"),
        (["world=one"], "world=one: the seeds 50 and 0 would share it"),
        (["out=one"], "one: two runs have this folder"),
        (["workers=0"], "workers=0: must be a whole number of processes, at least 1"),
        (["seeds=abc"], "seeds=abc: must be a whole number of seeds, at least 1"),
        (["collapse.control_seeds=[1]"], "two runs have this folder; keep collapse.control_seeds apart"),
        (["collapse.arm=uniform"], "collapse.arm=uniform: is the baseline or a positive control"),
        (["seed=3"], "seed=3: the sweep's own configurations set seed"),
    ],
)
def test_wrong_settings_are_refused_before_any_run(trains, arguments, message):
    status, _, err = trains(*[a for a in SMALL if a.split("=")[0] not in arguments[0]], *arguments)
    assert status == 1
    assert message in err and "Traceback" not in err and not Path("runs").exists()


def test_the_arms_on_smollm2_differ_in_their_own_setting_alone():
    """The value of a grid may be a dict, which Hydra's grammar writes without quotes."""
    cfg = compose_config("train", ["sweep=mode_collapse_smollm2", "seeds=2"])
    jobs = expand(factors(cfg.sweep), [])
    configs = [compose_config("train", ["sweep=mode_collapse_smollm2", *job]) for job in jobs]
    arms = {str(one.arm) for one in configs}
    assert len(jobs) == 4 + 2 * 8 and "oracle" not in arms and {"density", "uniform_again"} <= arms
    settings = {str(one.arm): one.grpo.reward_settings for one in configs}
    assert settings.pop("novelty") == {"novelty": {"same_from": 0.6}} and set(settings.values()) == {None}
