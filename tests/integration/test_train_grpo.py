"""The GRPO loop: one command from raw pairs, exact resume after SIGKILL, two processes, and refused settings."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kat.data.heldout import held_out
from kat.grpo import actor as grpo_actor
from kat.grpo import learning as grpo_learning
from kat.grpo import step as grpo_step
from kat.grpo.rollout import Sampling
from latentwire.harness import checkpoint, optimization
from tests.helpers.files import read_rows
from tests.helpers.programs import start
from tests.helpers.random import shifted
from tests.helpers.rewards import vowels

pytestmark = pytest.mark.usefixtures("one_thread")

QUESTIONS = [f"What is the {noun} of {place}?" for noun in ("capital", "river", "king", "tree", "law", "age")
             for place in ("France", "the moon", "Rome", "Peru")]  # fmt: skip


def write_pairs(path: Path, count: int = len(QUESTIONS)) -> None:
    rows = [{"prompt": q, "chosen": f"It is {q[12:15]}.", "rejected": "I do not know"} for q in QUESTIONS[:count]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


SMALL = [
    "model=tiny_random",
    "device=cpu",
    "pairs=file",
    "path=pairs.jsonl",
    "sampler=uniform",
    "held_out=0.3",
    "steps=4",
    "checkpoint_every=2",
    "batch_tokens=256",
    "tuning.blocks=1",
    "optimizer.learning_rate=0.01",
    "optimizer.warmup_steps=0",
    "optimizer.schedule=constant",
    "grpo.eval_generations=2",
    "grpo.prompts_per_step=2",
    "grpo.num_generations=3",
    "grpo.max_completion_length=6",
    "grpo.eval_prompts=4",
    "grpo.eval_every=2",
    "grpo.num_iterations=2",
    "grpo.reward_funcs=[tests.helpers.rewards:vowels]",
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Return an empty folder with the pairs in it."""
    write_pairs(tmp_path / "pairs.jsonl")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def training(here, trains):
    """Run train.py with the small settings; returns exit status, standard output and standard error."""
    return partial(trains, *SMALL)


RUN = Path("outputs/grpo/uniform_seed0")
SAME = ("metrics.jsonl", "held_out.jsonl", "completions.jsonl", "ledger.jsonl")


@pytest.mark.slow
@pytest.mark.float_path
def test_one_command_trains_and_writes_every_file(training, here):
    status, out, err = training()
    assert status == 0, err
    result = json.loads((RUN / "result.json").read_text())
    metrics = read_rows(RUN / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4]
    first = metrics[0]
    assert first["reward"] == pytest.approx(first["rewards/tests.helpers.rewards:vowels"])
    assert first["kl"] == pytest.approx(0, abs=1e-6) and metrics[-1]["kl"] > 1e-4
    assert all(row["sampling_gap"] < 1e-4 for row in metrics)
    assert {row["learning_rate"] for row in metrics} == {0.01}
    assert all(1 <= row["length"] <= 6 and row["entropy"] > 0 for row in metrics)

    prompts = read_rows(Path("outputs/kat/prompts_all.jsonl"))
    kept = {row["id"] for row in prompts if held_out(row["id"], 0.3)}
    ledger = read_rows(RUN / "ledger.jsonl")
    assert {row["id"] for row in ledger} == {row["id"] for row in prompts} - kept
    assert sum(row["drawn"] for row in ledger) == 4 * 2
    assert sum(row["intended"] for row in ledger) == pytest.approx(4 * 2)

    evaluations = read_rows(RUN / "held_out.jsonl")
    assert [found["step"] for found in evaluations] == [0, 2, 4] and evaluations == result["held_out_curve"]
    assert evaluations[0]["gain"] == 0 and evaluations[2]["gain"] == pytest.approx(
        evaluations[2]["reward"] - evaluations[0]["reward"]
    )
    assert evaluations[2]["gain_interval"][0] <= evaluations[2]["gain"] <= evaluations[2]["gain_interval"][1]
    answered = read_rows(RUN / "completions.jsonl")
    assert [row["step"] for row in answered] == [0] * 4 + [2] * 4 + [4] * 4
    assert {row["id"] for row in answered} <= kept
    shown = answered[0]["completions"][0]
    assert shown["reward"] == pytest.approx(vowels([""], [shown["text"]])[0])

    kls = [[c["kl"] for row in answered if row["step"] == step for c in row["completions"]] for step in (0, 4)]
    tokens = sum(c["tokens"] for row in answered if row["step"] == 4 for c in row["completions"])
    assert evaluations[0]["kl"] == pytest.approx(0, abs=1e-6) and kls[0] == pytest.approx([0.0] * 8, abs=1e-5)
    assert evaluations[2]["kl"] == pytest.approx(sum(kls[1]) / tokens) and evaluations[2]["kl"] > 1e-4
    assert f"KL {evaluations[2]['kl']:.4f}" in out and f"KL {evaluations[1]['kl']:.4f}" in err

    counts = result["counts"]
    assert counts["steps_without_update"] == 0 and "nothing to learn" not in out
    assert (counts["completions"], counts["groups"]) == (24, 8)
    assert counts["train_prompts"] + counts["held_out_prompts"] == len(prompts) and counts["too_long"] == 0
    assert counts["truncated"] == round(sum(6 * row["truncated"] for row in metrics))
    assert f"{counts['truncated']} of 24 completions were cut off" in out
    assert sorted(path.name for path in (RUN / "checkpoints").iterdir()) == ["step-00000002.pt", "step-00000004.pt"]

    from transformers import AutoModelForCausalLM

    trained = AutoModelForCausalLM.from_pretrained(RUN / "model")
    saved = torch.load(RUN / "checkpoints" / "step-00000004.pt", weights_only=True)["state"]["parameters"]
    assert saved.keys() <= dict(trained.named_parameters()).keys()
    assert all(torch.equal(dict(trained.named_parameters())[name], p) for name, p in saved.items())

    status, _, err = training()
    assert status == 0 and "finished before" in err
    status, _, err = training("grpo.beta=0.1", "seed=0")
    assert status == 1 and "grpo.beta was 0.04 and is 0.1" in err and "force=true" in err
    status, _, err = training(f"policy={RUN}", "force=true")
    assert status == 1 and f"policy={RUN}: is inside the folder that this run writes to" in err
    assert (RUN / "model" / "config.json").is_file() and not (RUN / "replaced").exists()
    status, _, err = training("model=path", f"model.path={RUN}", "out=again")
    assert status == 1 and f"model.path={RUN}: is the folder of a run; use model.path={RUN}/model" in err
    for given in (f"policy={RUN}", f"model.path={RUN}/model"):
        status, _, err = training("model=path", given, "held_out=0.6", "out=again", "steps=1")
        assert status == 1 and f"{given}: was trained on " in err and "prompts that are held out here" in err


@pytest.mark.slow
@pytest.mark.float_path
@pytest.mark.statistical
def test_the_reward_rises(training):
    """Vowels are easy to learn where a completion has two tokens: the gain is about .2 with any seed."""
    status, out, err = training("steps=20", "grpo.num_generations=24", "grpo.beta=0.0", "grpo.max_completion_length=2",
                                "optimizer.learning_rate=0.02", "batch_tokens=4096", "grpo.eval_prompts=7",
                                "grpo.eval_generations=24", "grpo.eval_every=20", f"seed={shifted(0)}",
                                f"out={RUN}")  # fmt: skip
    assert status == 0, err
    assert all("kl" not in row for row in read_rows(RUN / "metrics.jsonl"))
    result = json.loads((RUN / "result.json").read_text())
    assert result["held_out"]["gain"] > 0.1, out


@pytest.mark.slow
@pytest.mark.float_path
@pytest.mark.parametrize("method", ["lora", "all"])
def test_lora_and_full_tuning_save_the_whole_policy(training, method):
    status, _, err = training(f"tuning.method={method}", "steps=2", "grpo.eval_prompts=0")
    assert status == 0, err
    result = json.loads((RUN / "result.json").read_text())
    assert result["held_out"] is None and result["frozen_blocks_shared"] == 0
    weights = load_file(RUN / "model" / "model.safetensors")
    assert not any("lora" in name for name in weights)
    metrics = read_rows(RUN / "metrics.jsonl")
    assert metrics[0]["kl"] == pytest.approx(0, abs=1e-6) and metrics[1]["kl"] > 1e-5
    assert all(row["sampling_gap"] < 1e-4 for row in metrics)


def trained_and_given(tiny) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return each weight of the saved policy and its value in the model that training started from."""
    trained = load_file(RUN / "model" / "model.safetensors")
    given = tiny.model.state_dict()
    return [(value, given[name]) for name, value in trained.items()]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (
            ["grpo.mask_truncated_completions=true", "grpo.max_completion_length=1"],
            "every completion was cut off and left out",
        ),
        (["grpo.reward_funcs=[tests.helpers.rewards:constant]"], "all rewards of a group are equal"),
    ],
)
def test_a_step_without_a_gradient_leaves_the_policy_unchanged(training, tiny, settings, why):
    status, out, err = training(*settings, "steps=2", "grpo.eval_prompts=0", "optimizer.weight_decay=0.5")
    assert status == 0, err
    metrics = read_rows(RUN / "metrics.jsonl")
    assert [row["grad_norm"] for row in metrics] == [0, 0]
    if "left out" in why:
        assert [(row["truncated"], row["loss"]) for row in metrics] == [(1, 0), (1, 0)]
    else:
        assert [row["degenerate_groups"] for row in metrics] == [1, 1]
    assert f"step 1 of uniform_seed0: {why}, so there is nothing to learn from and no optimizer step" in err
    assert "2 of 2 steps had nothing to learn from and did not change the policy" in out
    assert json.loads((RUN / "result.json").read_text())["counts"]["steps_without_update"] == 2
    assert all(torch.equal(mine, given) for mine, given in trained_and_given(tiny))


def test_a_gradient_of_another_process_updates_this_one(training, tiny, monkeypatch):
    def of_two(state, numbers):  # tokens, sequences, and whether there is a gradient: the other process has one
        return [*numbers, [*numbers[0][:2], 1]] if isinstance(numbers[0], list) and len(numbers[0]) == 3 else numbers

    monkeypatch.setattr(grpo_step, "gather_from_all", of_two)
    status, _, err = training("grpo.reward_funcs=[tests.helpers.rewards:constant]", "steps=1", "grpo.eval_prompts=0",
                              "optimizer.weight_decay=0.5")  # fmt: skip
    assert status == 0 and "nothing to learn" not in err
    assert json.loads((RUN / "result.json").read_text())["counts"]["steps_without_update"] == 0
    assert not all(torch.equal(mine, given) for mine, given in trained_and_given(tiny))


@pytest.mark.slow
def test_force_restarts_once_and_then_resumes(training, monkeypatch):
    from latentwire.harness.run import Run

    assert training()[0] == 0
    whole = {name: (RUN / name).read_bytes() for name in SAME}
    real = Run.log

    def stopped(self, step, *numbers):
        if step == 4:
            raise KeyboardInterrupt
        real(self, step, *numbers)

    monkeypatch.setattr(Run, "log", stopped)
    status, _, err = training("force=true")
    assert status == 130 and "replaced/1" in err and not (RUN / "result.json").exists()
    assert sum(row["drawn"] for row in read_rows(RUN / "ledger.jsonl")) == 2 * 2  # as it was at the checkpoint
    monkeypatch.setattr(Run, "log", real)
    status, _, err = training("force=true")
    assert status == 0 and "begun anew by force=true" in err and "going on after step 2 of 4" in err
    assert [path.name for path in (RUN / "replaced").iterdir()] == ["1"]
    assert {name: (RUN / name).read_bytes() for name in SAME} == whole


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(training, here, tmp_path_factory, monkeypatch):
    more = ("steps=12", "checkpoint_every=5", "grpo.eval_every=3", "optimizer.schedule=cosine", "grpo.top_p=0.9")
    assert training(*more)[0] == 0
    whole = here / RUN
    other = tmp_path_factory.mktemp("killed")
    shutil.copy(here / "pairs.jsonl", other)
    shutil.copytree(here / "outputs" / "kat", other / "outputs" / "kat")
    path = other / RUN / "metrics.jsonl"
    killed = start("train", *SMALL, *more, folder=other)
    killed.kill_when(lambda: path.is_file() and path.read_bytes().count(b"\n") >= 7)
    assert not (other / RUN / "result.json").exists()
    monkeypatch.chdir(other)
    status, _, told = training(*more)
    assert status == 0, told
    assert "going on after step 5 of 12" in told or "going on after step 10 of 12" in told
    for name in SAME:
        assert (other / RUN / name).read_bytes() == (whole / name).read_bytes(), name
    a, b = (load_file(folder / "model" / "model.safetensors") for folder in (whole, other / RUN))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    results = [json.loads((folder / "result.json").read_text()) for folder in (whole, other / RUN)]
    for name in ("identity", "held_out_curve", "last_step", "counts"):
        assert results[0][name] == results[1][name]


def die_at(point: str, step: int) -> None:
    """Let the process kill itself at this point of a run."""
    write, save = checkpoint.torch.save, checkpoint.Checkpoints.save

    def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def half(content, file):
        if content["step"] == step:
            file.write(b"half of it")
            file.flush()
            die()
        write(content, file)

    def then(self, number, state):
        save(self, number, state)
        if number == step:
            die()

    if point == "while a checkpoint is written":
        checkpoint.torch.save = half
    elif point == "right after one":
        checkpoint.Checkpoints.save = then
    else:
        grpo_learning.save_model = die


@pytest.mark.slow
def test_a_run_killed_several_times_ends_with_the_same_bits(training, here, tmp_path_factory, monkeypatch):
    more = ("steps=6", "grpo.eval_every=3", "optimizer.schedule=cosine")
    assert training(*more)[0] == 0
    other = tmp_path_factory.mktemp("killed")
    shutil.copy(here / "pairs.jsonl", other)
    shutil.copytree(here / "outputs" / "kat", other / "outputs" / "kat")
    for point, step, left in (
        ("while a checkpoint is written", 4, ["step-00000002.pt"]),
        ("right after one", 4, ["step-00000002.pt", "step-00000004.pt"]),
        ("at the very end", 6, ["step-00000004.pt", "step-00000006.pt"]),
    ):
        killed = start("train", *SMALL, *more, folder=other, before=partial(die_at, point, step))
        assert killed.wait() == [-signal.SIGKILL], killed.told()
        assert sorted(path.name for path in (other / RUN / "checkpoints").glob("step-*")) == left, point
        assert not (other / RUN / "result.json").exists() and not (other / RUN / "model").exists()
    monkeypatch.chdir(other)
    status, _, told = training(*more)
    assert status == 0 and "going on after step 6 of 6" in told, told
    for name in (*SAME, "model/model.safetensors"):
        assert (other / RUN / name).read_bytes() == (here / RUN / name).read_bytes(), name


@pytest.mark.slow
def test_two_processes_run_the_whole_density_pipeline(here):
    """Two processes build pairs, prompts, densities, a reward model and a policy, as the README's command does."""
    with (here / "pairs.jsonl").open("a", encoding="utf-8") as file:
        for n in range(20):
            file.write(
                json.dumps({"prompt": f"Who was number {n}?", "chosen": "He was.", "rejected": "No idea"}) + "\n"
            )
    started = start("train", *SMALL, "sampler=density", "grpo.reward_funcs=[model]", "steps=2", folder=here, ranks=2)
    assert started.wait() == [0, 0], started.told()
    told = started.told()
    for name in ("pairs", "prompts", "embed", "density", "reward"):
        assert f"task={name} comes first" in told
    folder = here / "outputs/grpo/density_seed0"
    judge, result = (json.loads((each / "result.json").read_text())
                     for each in (here / "outputs/reward/uniform_seed0", folder))  # fmt: skip
    assert judge["processes"] == result["processes"] == 2 and judge["held_out"]["by_density_decile"]
    weights = {row["id"]: row["weight"] for row in read_rows(here / "outputs/kat/weights.jsonl")}
    ledger = read_rows(folder / "ledger.jsonl")
    total = sum(weights[row["id"]] for row in ledger)
    for row in ledger:
        assert row["intended"] == pytest.approx(4 * weights[row["id"]] / total)
    assert sum(row["drawn"] for row in ledger) == 4
    trained_on = {row["id"] for row in read_rows(here / "outputs/reward/uniform_seed0/ledger.jsonl")}
    answered = {row["id"] for row in read_rows(folder / "completions.jsonl")}
    assert answered and not answered & trained_on and not answered & {row["id"] for row in ledger}
    assert [row["step"] for row in read_rows(folder / "metrics.jsonl")] == [1, 2]
    assert read_rows(folder / "metrics.jsonl")[1]["kl"] > 0 and result["held_out"]["kl"] > 0
    assert result["identity"]["reward"].keys() == {"model.safetensors", "settings"}


@pytest.mark.float_path
@pytest.mark.slow
def test_two_processes_match_one(training, here, tmp_path_factory):
    assert training("steps=3")[0] == 0
    other = tmp_path_factory.mktemp("two")
    shutil.copy(here / "pairs.jsonl", other)
    shutil.copytree(here / "outputs" / "kat", other / "outputs" / "kat")
    started = start("train", *SMALL, "steps=3", folder=other, ranks=2)
    assert started.wait() == [0, 0], started.told()
    one, two = here / RUN, other / RUN
    assert (one / "ledger.jsonl").read_bytes() == (two / "ledger.jsonl").read_bytes()
    for mine, theirs in zip(read_rows(one / "metrics.jsonl"), read_rows(two / "metrics.jsonl"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    answered = [read_rows(run / "completions.jsonl") for run in (one, two)]
    texts = [[c["text"] for row in looked for c in row["completions"]] for looked in answered]
    assert texts[0] == texts[1]
    a, b = (load_file(run / "model" / "model.safetensors") for run in (one, two))
    assert all(torch.allclose(a[name], b[name], atol=1e-3) for name in a)
    assert json.loads((two / "result.json").read_text())["processes"] == 2


def test_a_nan_loss_stops_the_run(training, monkeypatch):
    import kat.grpo.step

    monkeypatch.setattr(kat.grpo.step, "advantages", lambda rewards, scale: rewards * torch.nan)
    status, _, err = training()
    assert status == 1
    assert "the loss is nan at step 1 of uniform_seed0, inner epoch 1, micro-batch 1 of" in err
    assert not (RUN / "result.json").exists() and not (RUN / "metrics.jsonl").exists()


def test_out_of_memory_names_the_settings_to_lower(training, monkeypatch):
    import kat.grpo.step

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(kat.grpo.step, "advantages", full)
    status, _, err = training()
    assert status == 1 and "Traceback" not in err
    assert "error: batch_tokens=256, grpo.prompts_per_step=2: cpu (" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grpo.num_generations=1"], r"grpo.num_generations=1"),
        (["grpo.prompts_per_step=0"], "grpo.prompts_per_step=0: must be at least 1"),
        (["grpo.num_iterations=0"], "grpo.num_iterations=0: must be at least 1"),
        (["grpo.eval_every=0"], "grpo.eval_every=0: must be at least 1"),
        (["grpo.eval_generations=0"], "grpo.eval_generations=0: must be at least 1"),
        (["grpo.prompts_per_step=30"], "grpo.prompts_per_step=30: sampler=uniform can draw 18 of the 18"),
        (["grpo.epsilon=0"], "grpo.epsilon=0"),
        (["grpo.temperature=0"], "grpo.temperature=0"),
        (["grpo.kl=k5"], "grpo.kl=k5"),
        (["steps=0"], "steps=0: must be at least 1"),
        (["steps=half"], "steps=half: expected a whole number"),
        (["checkpoint_every=0"], "checkpoint_every=0: must be at least 1"),
        (["keep_checkpoints=few"], "keep_checkpoints=few: expected a whole number"),
        (["seed=null"], "seed=None: expected a whole number"),
        (["held_out=0"], "holds out none"),
        (["held_out=null"], "held_out=None: expected a number"),
        (["held_out=-0.1"], "held_out=-0.1: must be a share of the prompts"),
        (["sampler.name=rarest"], "sampler=rarest: unknown; use one of"),
        (["grpo.eval_prompts=all"], "grpo.eval_prompts=all: expected a whole number"),
        (["grpo.eval_prompts=-1"], "grpo.eval_prompts=-1: must be 0 (no evaluation) or more"),
        (["grpo.num_generations=null"], "grpo.num_generations=None: expected a whole number"),
        (["grpo.top_p=0"], "grpo.top_p=0.0: must be above 0"),
        (["batch_tokens=some"], "batch_tokens=some: expected auto or a whole number above 0"),
        (["policy=7"], "policy=7: no such folder"),
        (["grpo.max_completion_length=5000"], "none of the 24 prompts leaves room for 5000 new tokens"),
        (["policy=nowhere"], "policy=nowhere: no such folder"),
        (["policy=outputs"], "policy=outputs: holds no model"),
        (["grpo.reward_funcs=[model]", "reward=nowhere"], "reward=nowhere: no such folder"),
        (["grpo.reward_funcs=[model]", "reward=outputs"], "holds no model"),
        (["grpo.reward_funcs=[nothing_there:f]"], "no module is named nothing_there"),
        (["grpo.reward_weights=[1,2]"], "2 weights for 1 rewards"),
        (["grpo.beta=much"], "grpo.beta=much: expected a number"),
    ],
)
def test_invalid_settings_are_refused_with_a_remedy(training, here, arguments, message):
    (here / "outputs").mkdir()
    status, _, err = training(*arguments)
    assert status == 1 and message in err
    assert "Traceback" not in err and not (RUN / "metrics.jsonl").exists()


def test_a_batch_that_does_not_divide_is_refused(training, monkeypatch):
    import kat.grpo.settings

    class Two:
        num_processes = 2
        device = torch.device("cpu")

    monkeypatch.setattr(kat.grpo.settings, "accelerator_state", lambda _: Two())
    status, _, err = training("grpo.prompts_per_step=3")
    assert status == 1 and "2 processes cannot share them evenly; use a multiple of 2" in err


@pytest.mark.slow
def test_unsuitable_models_are_refused(training, here, tiny):
    """A policy as reward model, a reward model as policy, other tokenizers and pickled weights are refused."""
    folder = here / "lm"
    tiny.model.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    status, _, err = training("grpo.reward_funcs=[model]", "reward=lm")
    assert status == 1 and "reward=" in err and "not a reward model" in err

    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    judge = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    judge.config.pad_token_id = 5
    judge.save_pretrained(here / "judge")
    other = AutoTokenizer.from_pretrained(folder)
    other.add_tokens(["<|new|>"])
    other.save_pretrained(here / "judge")
    status, _, err = training("grpo.reward_funcs=[model]", "reward=judge")
    assert status == 1 and "has another tokenizer than the policy, they differ in vocabulary (" in err
    tiny.tokenizer.save_pretrained(here / "judge")
    status, _, err = training("policy=judge", "steps=1")
    assert status == 1 and "policy=judge: " in err and "it is a reward model: its score.weight returns" in err
    status, _, err = training("grpo.reward_funcs=[model]", "reward=judge", "policy=lm", "steps=1")
    assert status == 0, err
    assert read_rows(RUN / "metrics.jsonl")[0].keys() >= {"rewards/model"}
    status, _, err = training("grpo.reward_funcs=[model]", "reward=judge", "policy=lm", "steps=1")
    assert status == 0 and "finished before" in err
    identity = json.loads((RUN / "result.json").read_text())["identity"]
    prompts = [row["id"] for row in read_rows(Path("outputs/kat/prompts_all.jsonl"))]
    seen = next(name for name in prompts if held_out(name, 0.3))
    (here / "judge" / "ledger.jsonl").write_text(json.dumps({"id": seen, "drawn": 1}) + "\n")
    again = ("grpo.reward_funcs=[model]", "reward=judge", "policy=lm", "steps=1", "out=again")
    status, _, err = training(*again)
    assert status == 1 and "reward=judge: was trained on 1 of the" in err and seen in err
    shutil.move(here / "judge" / "ledger.jsonl", here / "lm")
    status, _, err = training(*again)
    assert status == 1 and "policy=lm: was trained on 1 of the" in err
    (here / "lm" / "ledger.jsonl").unlink()

    settings = json.loads((here / "judge" / "config.json").read_text())
    (here / "judge" / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 9}))
    status, _, err = training(*again)
    assert status == 1 and "leaves room for 6 new tokens in the reward model's context of 9" in err
    (here / "judge" / "config.json").write_text(json.dumps(settings))
    for setting, name in (("reward", "judge"), ("policy", "lm")):
        weights = here / name / "model.safetensors"
        shutil.move(weights, here / name / "pytorch_model.bin")
        status, _, err = training(*again)
        assert status == 1 and f"{setting}={name}: " in err and "a pickle, which is not loaded" in err, err
        shutil.move(here / name / "pytorch_model.bin", weights)
    assert identity["policy"].keys() == identity["reward"].keys() == {"model.safetensors", "settings"}
    assert identity["policy"] != identity["reward"] and identity["reward_functions"] == {}


def test_a_full_disk_stops_the_run_with_a_remedy(training, monkeypatch):
    from latentwire.harness import checkpoint

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    status, _, err = training()
    assert status == 1 and "No space left on device" in err and "free some space" in err


@pytest.mark.slow
def test_the_tracker_receives_metrics_tables_and_histograms(training, monkeypatch):
    from latentwire.harness import run

    told: list[tuple] = []

    class Run:
        def log(self, step, numbers):
            told.append(("log", step, sorted(numbers)))

        def histogram(self, step, name, values):
            told.append(("histogram", step, name, len(values)))

        def table(self, step, name, columns, rows):
            told.append(("table", step, name, len(rows), [len(row) == len(columns) for row in rows]))

        def close(self, summary):
            told.append(("close", sorted(summary)))

    monkeypatch.setattr(run, "start_run", lambda *_: Run())
    assert training("steps=2", "grpo.eval_every=2")[0] == 0
    assert ("table", 0, "completions", 4, [True] * 4) in told and ("table", 2, "completions", 4, [True] * 4) in told
    assert ("histogram", 1, "rewards", 6) in told
    assert next(entry for entry in told if entry[0] == "histogram")[2] == "sampling_weights"
    logged = [entry for entry in told if entry[0] == "log"]
    assert any("held_out/reward" in names for _, _, names in logged)
    assert any({"reward", "kl", "length", "entropy", "tokens_per_second"} <= set(names) for _, _, names in logged)
    assert told[-1][0] == "close" and "held_out/reward" in told[-1][1]


def test_the_schedule_counts_inner_epochs(training):
    """With 2 inner epochs a step, the logged rates of 2 steps are 0.0075 and 0.0025."""
    assert training("steps=2", "optimizer.schedule=linear", "grpo.eval_prompts=0")[0] == 0
    assert [row["learning_rate"] for row in read_rows(RUN / "metrics.jsonl")] == pytest.approx([0.0075, 0.0025])


@pytest.mark.slow
def test_micro_batches_change_nothing(training, monkeypatch):
    real, sizes = grpo_step.micro_batches, {"whole": [], "parts": []}
    for name, extra in (("whole", []), ("parts", ["batch_tokens=1"])):

        def noted(rows, limit, own=sizes[name]):
            found = real(rows, limit)
            own.append(len(found))
            return found

        monkeypatch.setattr(grpo_step, "micro_batches", noted)
        assert training("steps=2", "grpo.eval_prompts=0", f"out={name}", *extra)[0] == 0
    assert sizes == {"whole": [1, 1], "parts": [6, 6]}
    for whole, parts in zip(*(read_rows(Path(name) / "metrics.jsonl") for name in ("whole", "parts")), strict=True):
        assert parts == pytest.approx(whole, rel=1e-3, abs=1e-4)
        assert whole["entropy"] <= math.log(2048)  # the entropy of a token, not of a completion


@pytest.mark.slow
@pytest.mark.parametrize("how", ["dapo", "grpo"])
def test_the_weights_of_a_step_sum_to_one(training, monkeypatch, how):
    real, sums = grpo_step.loss_weights, []

    def noted(*arguments):
        sums.append(float(real(*arguments).sum()))
        return real(*arguments)

    monkeypatch.setattr(grpo_step, "loss_weights", noted)
    one_by_one = ["steps=1", "grpo.num_iterations=1", "batch_tokens=1", "grpo.eval_prompts=0"]
    assert training(f"grpo.loss_type={how}", *one_by_one)[0] == 0
    assert len(sums) == 6
    assert sum(sums) == pytest.approx(1)


@pytest.mark.slow
def test_sampling_uses_the_settings_and_a_key_for_each_group(training, monkeypatch):
    real, asked = grpo_actor.sample, []

    def noted(model, prompts, keys, how, *, seed, **more):
        asked.append((keys, how, seed))
        return real(model, prompts, keys, how, seed=seed, **more)

    monkeypatch.setattr(grpo_actor, "sample", noted)
    given = ["steps=2", "seed=5", "grpo.eval_prompts=0", "grpo.temperature=0.7", "grpo.top_p=0.9", "out=run"]
    assert training(*given)[0] == 0
    assert len({key for keys, *_ in asked for key in keys}) == 4
    assert {(how, seed) for _, how, seed in asked} == {(Sampling(3, 6, 0.7, 0.9, 256), 5)}
    assert all(row["sampling_gap"] < 1e-4 for row in read_rows(Path("run/metrics.jsonl")))


@pytest.mark.slow
def test_the_gradient_is_clipped_before_the_step(training, monkeypatch):
    done, step = [], torch.optim.AdamW.step
    monkeypatch.setattr(optimization, "clip_gradients", lambda parameters, most, where: done.append(most) or 1.0)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *given: done.append("step") or step(self, *given))
    assert training("steps=1", "grpo.eval_prompts=0", "optimizer.max_grad_norm=0.125")[0] == 0
    assert done == [0.125, "step"] * 2
