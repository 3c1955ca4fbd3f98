"""Two commands at once in one place: one works, the other waits or says so, and a killed owner's work is taken over."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from kat.embedding.pooling import HiddenEmbedder
from kat.pipeline import density as density_task
from latentwire.harness.claims import claimed
from latentwire.harness.results import read_jsonl
from latentwire.harness.run import Run
from latentwire.sweeps import schedule
from tests.helpers.checkpoints import make_checkpoints, write_prompts_and_weights
from tests.helpers.collapse_runs import Experiment, write_experiment
from tests.helpers.files import read_json, write_rows
from tests.helpers.lifelike import lifelike
from tests.helpers.programs import Started, start

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

LATENT = ["task=latent", "model=tiny_random", "device=cpu", "dtype=float32", "adapter_hidden=16", "samples=12",
          "shots=1", "encoder=bottleneck", "d_z=8", "loss=reconstruction", "epochs=2", "out=run"]  # fmt: skip
WORLD = ["task=world", "world.topics=4", "world.prompts=60", "world.attributes=2", "base.hidden_size=32",
         "base.intermediate_size=64", "base.heads=2", "steps=4", "base.lines_per_step=8", "device=cpu",
         "out=run"]  # fmt: skip
GRPO = ["model=tiny_random", "device=cpu", "pairs=file", "path=pairs.jsonl", "held_out=0.3", "steps=2", "out=run",
        "batch_tokens=256", "tuning.blocks=1", "grpo.eval_generations=2", "grpo.prompts_per_step=2",
        "grpo.num_generations=3", "grpo.max_completion_length=6", "grpo.eval_prompts=4", "grpo.eval_every=2",
        "grpo.reward_funcs=[tests.helpers.rewards:vowels]", "sampler=uniform"]  # fmt: skip
EMBED = ["task=embed", "model=tiny_random", "device=cpu", "dtype=float32", "prompts_file=./prompts.jsonl",
         "out=./one.pt"]  # fmt: skip
DENSITY = ["task=density", "device=cpu", "embeddings_file=./emb.pt", "prompts_file=./prompts.jsonl",
           "out=./weights.jsonl", "sampler.k=2"]  # fmt: skip
SWEEP = ["-m", "model=tiny_random", "device=cpu", "dtype=float32", "samples=4", "shots=1", "max_new_tokens=2",
         "embed_transform=baseline,rms_matching", "out=sweep"]  # fmt: skip


def until_go() -> None:
    """Wait until the test lets this process go on, two minutes at most."""
    deadline = time.monotonic() + 120
    while not Path("go").exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def stop_training() -> None:
    """Stop after the run is claimed, before its first step."""
    real = Run.begin

    def begin(self, *arguments):
        until_go()
        return real(self, *arguments)

    Run.begin = begin


def stop_embedding() -> None:
    """Stop before the first batch."""
    real = HiddenEmbedder.embed

    def embed(self, texts):
        until_go()
        return real(self, texts)

    HiddenEmbedder.embed = embed


def stop_density() -> None:
    """Stop before the densities are computed."""
    real = density_task.estimate

    def estimate(*arguments):
        until_go()
        return real(*arguments)

    density_task.estimate = estimate


def stop_planning() -> None:
    """Stop after the probe of a budgeted sweep, before its first round."""
    real = schedule.first_round

    def first_round(*arguments):
        until_go()
        return real(*arguments)

    schedule.first_round = first_round


def until(reached: Callable[[], bool], *started: Started) -> None:
    """Wait for an event; fail if a program ends before, or after two minutes."""
    deadline = time.monotonic() + 120
    while not reached():
        assert all(one.running() for one in started), started[0].told()
        assert time.monotonic() < deadline, started[0].told()
        time.sleep(0.01)


def waiting_for(name: str, pid: int | None) -> str:
    return f"{name}: waiting for process {pid} on {socket.gethostname()}, since "


def prompts(count: int = 12) -> None:
    write_rows("prompts.jsonl", [{"id": f"id{n}", "prompt": f"Question {n}?", "source": "a"} for n in range(count)])


@contextlib.contextmanager
def other_command(folder: str, name: str, entry: str, *arguments: str, here: Path) -> Iterator[Started]:
    """Start a command while this process has claimed its work; the block begins when the command says that it waits."""
    with claimed(Path(folder) / "claims", name) as is_mine:
        assert is_mine
        started = start(entry, *arguments, folder=here)
        until(lambda: f"{name}: waiting for process " in started.told(), started)
        yield started
    assert started.wait() == [0], started.told()


@pytest.mark.parametrize("killed", [False, True], ids=["finished", "killed"])
@pytest.mark.parametrize("arguments", [LATENT, WORLD], ids=["latent", "world"])
def test_one_of_two_commands_trains(trains, tmp_path, arguments, killed):
    """The second one waits, and takes the run over at once if the first one is killed."""
    first = start("train", *arguments, folder=tmp_path, before=stop_training)
    until(Path("run/claims/run").exists, first)
    second = start("train", *arguments, folder=tmp_path)
    until(lambda: waiting_for("run", first.processes[0].pid) in second.told(), first, second)
    assert not Path("run/metrics.jsonl").exists()
    if killed:
        first.kill()
        killed_at = time.monotonic()
        until(Path("run/metrics.jsonl").exists, second)
        assert time.monotonic() - killed_at < 30
    else:
        Path("go").touch()
        assert first.wait() == [0], first.told()
    assert second.wait() == [0], second.told()
    assert second.told().count("(finished before; force=true trains it anew)") == (not killed)
    steps = [row["step"] for row in read_jsonl(Path("run/metrics.jsonl"))]
    assert steps == sorted(set(steps)) and steps
    assert not Path("run/claims").exists() and Path("run/result.json").is_file()


@pytest.mark.parametrize("killed", [False, True], ids=["finished", "killed"])
def test_one_of_two_commands_embeds_into_a_file(cli, tmp_path, killed):
    prompts()
    first = start("run", *EMBED, folder=tmp_path, before=stop_embedding)
    until(Path("claims/one.pt").exists, first)
    second = start("run", *EMBED, folder=tmp_path)
    until(lambda: waiting_for("one.pt", first.processes[0].pid) in second.told(), first, second)
    if killed:
        first.kill()
    else:
        Path("go").touch()
        assert first.wait() == [0], first.told()
    assert second.wait() == [0], second.told()
    assert second.told().count("(finished before; force=true makes them again)") == (not killed)
    assert second.told().count("embeddings: one.pt (12 x 64); one.json") == 1
    assert not Path("claims").exists() and read_json("one.json")["n"] == 12


def test_a_file_that_another_command_makes_is_refused(cli, tmp_path):
    """Its settings may differ, so the second command ends and names the first one."""
    prompts(40)
    torch.save({"ids": [f"id{n}" for n in range(40)], "emb": lifelike(0, n=40, width=8)}, "emb.pt")
    first = start("run", *DENSITY, folder=tmp_path, before=stop_density)
    until(Path("claims/weights.jsonl").exists, first)
    status, _, err = cli(*DENSITY)
    owner = f"process {first.processes[0].pid} on {socket.gethostname()}, since "
    assert status == 1 and f"error: weights.jsonl: {owner}" in err and "is at work on it" in err
    assert not Path("weights.jsonl").exists()
    Path("go").touch()
    assert first.wait() == [0], first.told()
    assert len(read_jsonl(Path("weights.jsonl"))) == 40
    assert cli(*DENSITY)[0] == 0


@pytest.mark.parametrize(("task", "name"), [("pairs", "pairs_all.jsonl"), ("prompts", "prompts_all.jsonl")])
def test_pairs_and_prompts_have_one_writer(cli, tmp_path, task, name):
    write_rows("pairs.jsonl", [{"prompt": f"Q {n}?", "chosen": "yes", "rejected": "no"} for n in range(5)])
    command = ["pairs=file", "path=pairs.jsonl", "folder=kat"]
    assert cli("task=pairs", *command)[0] == 0
    with claimed(Path("kat/claims"), name):
        status, _, err = cli(f"task={task}", *command[: 3 if task == "pairs" else 0], "folder=kat")
        assert status == 1 and f"error: {name}: process " in err and "wait until it ends" in err
    assert cli(f"task={task}", *command[: 3 if task == "pairs" else 0], "folder=kat")[0] == 0
    assert not Path("kat/claims").exists()


def test_a_training_run_waits_for_files_that_another_makes(trains, cli, tmp_path):
    """It then uses them, and does not make them again."""
    write_rows("pairs.jsonl", [{"prompt": f"Why {n}?", "chosen": "yes", "rejected": "no"} for n in range(12)])
    assert cli("task=pairs", "pairs=file", "path=pairs.jsonl", "folder=made")[0] == 0
    work = "task=pairs for pairs_all.jsonl"
    with other_command("kat", work, "train", *GRPO, "folder=kat", here=tmp_path) as started:
        for path in Path("made").glob("pairs*"):
            shutil.copy(path, Path("kat"))
        before = Path("kat/pairs_all.jsonl").stat().st_ino
    assert Path("kat/pairs_all.jsonl").stat().st_ino == before
    assert "prompts_all.jsonl: not there yet" in started.told()
    assert "pairs_all.jsonl: not there yet" not in started.told()


def test_the_summary_of_a_sweep_has_one_writer(cli, tmp_path):
    with other_command("sweep", "summary.json", "run", *SWEEP, here=tmp_path):
        assert len(list(Path("sweep").glob("*.predictions.jsonl"))) >= 2
        assert not Path("sweep/summary.json").exists()
    assert len(read_json("sweep/summary.json")["results"]) == 2


def test_the_plan_of_a_budgeted_sweep_has_one_command(cli, tmp_path):
    """The second command begins when the first one has ended, and runs its plan again from the results."""
    budget = [*SWEEP, "samples=32", "budget_minutes=5"]
    first = start("run", *budget, folder=tmp_path, before=stop_planning)
    until(Path("sweep/claims/plan.json").exists, first)
    second = start("run", *budget, folder=tmp_path)
    until(lambda: waiting_for("plan.json", first.processes[0].pid) in second.told(), first, second)
    Path("go").touch()
    assert [first.wait(), second.wait()] == [[0], [0]], second.told()
    assert read_json("sweep/plan.json")["stopped"] and not Path("sweep/claims").exists()
    computed = re.findall(r"^\[\S+\] (\S+)  F1 .*(n=\d+)$", second.told(), re.MULTILINE)
    assert len(computed) == len(set(computed)) >= 6, computed
    assert second.told().count("(finished before)") >= 5
    assert not list(Path("sweep").glob("replaced/*"))


def test_the_report_on_latents_has_one_command(trains, cli, tmp_path):
    assert trains(*LATENT)[0] == 0
    command = ["task=latent_report", "checkpoint=run", "model=tiny_random", "samples=4", "shots=1", "max_new_tokens=2",
               "device=cpu", "dtype=float32", "out=report"]  # fmt: skip
    with other_command("report", "report.json", "run", *command, here=tmp_path):
        assert [path.name for path in Path("report").iterdir()] == ["claims"]
    assert {row["source"] for row in read_json("report/report.json")["rows"]} >= {"text", "latent", "empty"}


def test_the_samples_of_a_comparison_have_one_writer(cli, tmp_path):
    make_checkpoints(tmp_path / "runs")
    write_prompts_and_weights(tmp_path / "outputs" / "kat")
    command = ["task=diversity", "a=runs/one", "b=runs/two", "out=compared", "model=tiny_random", "prompts=10",
               "num_generations=2", "max_completion_length=4", "held_out=0.5", "device=cpu"]  # fmt: skip
    with other_command("compared", "diversity.json", "run", *command, here=tmp_path):
        assert [path.name for path in Path("compared").iterdir()] == ["claims"]
    assert len(read_jsonl(Path("compared/samples.jsonl"))) == 2 * 10 * 2


def test_the_verdict_has_one_writer(cli, tmp_path):
    write_experiment(Experiment(Path("runs"), seeds=(0, 1), prompts=4, generations=3))
    command = ["task=verdict", "folder=runs", "collapse.control_seeds=[]"]
    with other_command("runs", "verdict.json", "run", *command, here=tmp_path):
        assert not Path("runs/verdict.json").exists()
    assert read_json("runs/verdict.json")["answer"]
