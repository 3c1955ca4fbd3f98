"""Options of GRPO in whole runs: dynamic sampling, references that move, entropy, and their place in the identity."""

from __future__ import annotations

import json
import math
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from latentwire.harness.run import Run
from tests.helpers.files import read_rows
from tests.helpers.programs import start

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

SMALL = ["model=tiny_random", "device=cpu", "pairs=file", "path=pairs.jsonl", "sampler=uniform", "held_out=0.3",
         "steps=4", "checkpoint_every=2", "batch_tokens=256", "tuning.blocks=1", "optimizer.learning_rate=0.01",
         "optimizer.warmup_steps=0", "optimizer.schedule=constant", "grpo.prompts_per_step=2",
         "grpo.num_generations=3", "grpo.max_completion_length=6", "grpo.eval_prompts=4", "grpo.eval_every=2",
         "grpo.eval_generations=2", "grpo.reward_funcs=[tests.helpers.rewards:vowels]", "out=run"]  # fmt: skip
HALF = ["grpo.dynamic_sampling=true", "grpo.reward_funcs=[tests.helpers.rewards:equal_for_half]"]
DIFFICULTY = [*HALF, "sampler=difficulty", "grpo.sync_ref_model=true", "grpo.ref_model_sync_steps=1",
              "grpo.ref_model_mixup_alpha=0.5"]  # fmt: skip
CONSTANT = "grpo.reward_funcs=[tests.helpers.rewards:constant]"
SAME = ("metrics.jsonl", "held_out.jsonl", "completions.jsonl", "ledger.jsonl", "model/model.safetensors")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Return a folder with 24 pairs in it."""
    questions = [f"What is the {noun} of {place}?" for noun in ("capital", "river", "king", "tree", "law", "age")
                 for place in ("France", "the moon", "Rome", "Peru")]  # fmt: skip
    rows = [{"prompt": q, "chosen": f"It is {q[12:15]}.", "rejected": "I do not know"} for q in questions]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def training(here, trains):
    """Run train.py with the small settings; returns exit status, standard output and standard error."""
    return partial(trains, *SMALL)


def result_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def test_dynamic_sampling_drops_equal_groups(training):
    """Half of the prompts have equal rewards. The arm has seen all drawn prompts, the dropped ones, too."""
    status, out, err = training(*HALF, "sampler=difficulty")
    assert status == 0, err
    metrics, counts = read_rows(Path("run/metrics.jsonl")), result_of(Path("run"))["counts"]
    assert counts["dropped_groups"] == sum(row["dropped_groups"] for row in metrics) > 0
    assert counts["groups"] == 8 and all(row["degenerate_groups"] == 0 for row in metrics)
    ledger = read_rows(Path("run/ledger.jsonl"))
    assert sum(row["drawn"] for row in ledger) == 8 + counts["dropped_groups"]
    assert metrics[-1]["sampler/seen"] == sum(row["drawn"] > 0 for row in ledger) / len(ledger)
    assert f"{counts['dropped_groups']} more groups had equal rewards and were drawn again" in out


def test_dynamic_sampling_ends_at_the_limit(training):
    status, _, err = training("grpo.dynamic_sampling=true", "grpo.dynamic_sampling_rounds=3", CONSTANT, "steps=2",
                              "grpo.eval_prompts=0")  # fmt: skip
    assert status == 0, err
    assert [row["dropped_groups"] for row in read_rows(Path("run/metrics.jsonl"))] == [6, 6]
    counts = result_of(Path("run"))["counts"]
    assert (counts["groups"], counts["degenerate_groups"], counts["steps_without_update"]) == (4, 4, 2)


def test_a_stopped_run_resumes_to_the_same_bits(training, monkeypatch):
    """Dropped draws are part of the sampler's state, and a moved reference is part of the checkpoint."""
    assert training(*DIFFICULTY, "out=whole")[0] == 0
    real = Run.log

    def stopped(self, step, *numbers):
        if step == 4:
            raise KeyboardInterrupt
        real(self, step, *numbers)

    monkeypatch.setattr(Run, "log", stopped)
    assert training(*DIFFICULTY)[0] == 130
    monkeypatch.setattr(Run, "log", real)
    status, _, err = training(*DIFFICULTY)
    assert status == 0 and "going on after step 2 of 4" in err, err
    for name in SAME:
        assert Path("run", name).read_bytes() == Path("whole", name).read_bytes(), name
    whole, counts = (result_of(Path(name))["counts"] for name in ("whole", "run"))
    assert counts == whole and counts["dropped_groups"] > 0


@pytest.mark.float_path
def test_two_processes_match_one(training, here, tmp_path_factory):
    """The processes hold different numbers of groups, and reach the same metrics and draws up to rounding."""
    more = [*DIFFICULTY, "grpo.scale_rewards=batch", "grpo.top_entropy_quantile=0.5", "grpo.entropy_coef=0.01"]
    assert training(*more)[0] == 0
    other = tmp_path_factory.mktemp("two")
    shutil.copy(here / "pairs.jsonl", other)
    shutil.copytree(here / "outputs" / "kat", other / "outputs" / "kat")
    started = start("train", *SMALL, *more, folder=other, ranks=2)
    assert started.wait() == [0, 0], started.told()
    assert (here / "run/ledger.jsonl").read_bytes() == (other / "run/ledger.jsonl").read_bytes()
    for mine, theirs in zip(*(read_rows(each / "run/metrics.jsonl") for each in (here, other)), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    assert result_of(here / "run")["counts"] == result_of(other / "run")["counts"]
    a, b = (load_file(each / "run/model/model.safetensors") for each in (here, other))
    assert all(torch.allclose(a[name], b[name], atol=1e-3) for name in a)


@pytest.mark.float_path
def test_the_kl_restarts_where_the_reference_moves(training):
    """After step 2 the reference is a copy of the policy. The KL of held-out prompts is from the start of the run."""
    moving = ("grpo.sync_ref_model=true", "grpo.ref_model_sync_steps=2", "grpo.ref_model_mixup_alpha=1")
    status, _, err = training(*moving)
    assert status == 0, err
    first, second, third, fourth = (row["kl"] for row in read_rows(Path("run/metrics.jsonl")))
    assert first == pytest.approx(0, abs=1e-6) and third == pytest.approx(0, abs=1e-6)
    assert second > 1e-4 and fourth > 1e-4
    held_out = [row["kl"] for row in read_rows(Path("run/held_out.jsonl"))]
    assert held_out[0] == pytest.approx(0, abs=1e-6) and held_out[2] > held_out[1] > 1e-4


@pytest.mark.float_path
def test_the_bonus_trains_without_a_reward(training, tiny):
    """With equal rewards and no KL term, the loss is minus the bonus, and the weights change."""
    status, _, err = training(CONSTANT, "grpo.entropy_coef=0.5", "grpo.beta=0", "steps=2", "grpo.eval_prompts=0")
    assert status == 0, err
    for row in read_rows(Path("run/metrics.jsonl")):
        assert row["loss"] == pytest.approx(-0.5 * row["entropy"], abs=1e-4) and row["grad_norm"] > 0
    assert result_of(Path("run"))["counts"]["steps_without_update"] == 0


@pytest.mark.float_path
def test_the_bonus_is_a_mean_over_the_chosen_tokens(training):
    """The tokens of highest entropy have at least the mean entropy, and at most the one of an even distribution."""
    more = ("grpo.entropy_coef=0.5", "grpo.beta=0", "steps=1", "grpo.eval_prompts=0")
    for share in (0.0, 0.3):
        assert training(CONSTANT, *more, f"grpo.top_entropy_quantile={share}", f"out=run{share}")[0] == 0
        row = read_rows(Path(f"run{share}/metrics.jsonl"))[0]
        assert row["entropy"] < -row["loss"] / 0.5 <= math.log(2048) + 1e-4


@pytest.mark.float_path
@pytest.mark.parametrize("settings", [
    ["grpo.loss_type=dr_grpo", "grpo.top_entropy_quantile=0.4", "grpo.entropy_coef=0.1"],
    ["grpo.loss_type=cispo", "grpo.epsilon_high=1.0", "grpo.scale_rewards=batch"],
    ["grpo.loss_type=bnpo", "grpo.epsilon_high=0.001"],
])  # fmt: skip
def test_micro_batches_change_nothing(training, settings):
    more = (*settings, "steps=2", "grpo.num_iterations=2", "grpo.eval_prompts=0")
    for name, extra in (("whole", []), ("parts", ["batch_tokens=1"])):
        assert training(*more, f"out={name}", *extra)[0] == 0
    rows = [read_rows(Path(name, "metrics.jsonl")) for name in ("whole", "parts")]
    for whole, parts in zip(*rows, strict=True):
        assert parts == pytest.approx(whole, rel=1e-3, abs=1e-4)
        assert whole["clipped"] == pytest.approx(whole["clipped_low"] + whole["clipped_high"])
    if "top" not in settings[1]:
        assert any(row["clipped_high"] > 0 for row in rows[0])


def by_first_letter(texts):
    return [text.strip()[:1] for text in texts]


def test_novelty_multiplies_in_a_run(training):
    """Evaluations have each reward apart, so that qualities of runs with and without novelty can be compared."""
    vowels, settings = "tests.helpers.rewards:vowels", f"{{novelty: {{partition: {__name__}:by_first_letter}}}}"
    command = (f"grpo.reward_funcs=[{vowels},novelty]", f"grpo.reward_settings={settings}", "steps=1",
               "grpo.reward_weights=[1,1]", "grpo.eval_every=1")  # fmt: skip
    status, _, err = training(*command)
    assert status == 0, err
    rows = read_rows(Path("run/completions.jsonl"))
    assert len(rows) == 8
    for row in rows:
        texts = [c["text"] for c in row["completions"]]
        new = float(len(set(by_first_letter(texts))) == 2)  # of two completions
        for c in row["completions"]:
            assert c["rewards"]["novelty"] == new and c["reward"] == pytest.approx(c["rewards"][vowels] * new)
    last = result_of(Path("run"))["held_out"]["rewards"]
    of_last = [c["rewards"] for row in rows if row["step"] == 1 for c in row["completions"]]
    assert last == pytest.approx({name: sum(c[name] for c in of_last) / len(of_last) for name in last})
    assert last.keys() == {vowels, "novelty"}
    assert "novelty.partition" in result_of(Path("run"))["identity"]["reward_functions"]


def test_any_end_token_ends_a_completion(training, tiny):
    """The generation config names 205 end tokens, for steps and evaluations alike."""
    ends = list(range(0, 2048, 10))
    tiny.model.save_pretrained("lm")
    tiny.tokenizer.save_pretrained("lm")
    path = Path("lm/generation_config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": ends}))
    status, _, err = training("policy=lm", "steps=1", "grpo.eval_every=1", "held_out=0.6", "grpo.num_generations=16")
    assert status == 0, err
    counts = result_of(Path("run"))["counts"]
    assert 0 < counts["truncated"] < counts["completions"]
    for row in read_rows(Path("run/completions.jsonl")):
        assert all(c["ended"] for c in row["completions"] if c["tokens"] < 6)
    assert json.loads(Path("run/model/generation_config.json").read_text())["eos_token_id"] == ends


def test_settings_that_are_off_are_not_in_the_identity(training):
    """A run of a version without the settings goes on. A setting that is on is named."""
    assert training("steps=1", "grpo.eval_prompts=0")[0] == 0
    new = {"epsilon_high", "entropy_coef", "top_entropy_quantile", "sync_ref_model", "ref_model_sync_steps",
           "ref_model_mixup_alpha", "dynamic_sampling", "dynamic_sampling_rounds"}  # fmt: skip
    assert not new & result_of(Path("run"))["identity"]["grpo"].keys()
    path = Path("run/checkpoints/step-00000001.pt")
    saved = torch.load(path, weights_only=True)
    del saved["state"]["totals"]["dropped_groups"]  # as that version wrote it
    torch.save(saved, path)
    Path("run/result.json").unlink()
    assert training("steps=1", "grpo.eval_prompts=0", "grpo.ref_model_sync_steps=7")[0] == 0
    assert result_of(Path("run"))["counts"]["dropped_groups"] == 0
    for setting, value in (("entropy_coef", 0.01), ("epsilon_high", 0.28), ("dynamic_sampling", True)):
        status, _, err = training("steps=1", "grpo.eval_prompts=0", f"grpo.{setting}={value}")
        assert status == 1 and f"grpo.{setting} was not set and is {value}" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grpo.loss_type=cispo"], "grpo.epsilon_high=None: with loss_type=cispo"),
        (["grpo.epsilon_high=wide"], "grpo.epsilon_high=wide: expected a number or null"),
        (["grpo.prompt_template=Be brief."], "grpo.prompt_template='Be brief.': has no {prompt}, so all prompts"),
        (["grpo.sampling_stream=-1"], "grpo.sampling_stream=-1: must be 0 or more"),
        (["grpo.eval_truth=true", "grpo.eval_prompts=0"], "grpo.eval_truth=true: with grpo.eval_prompts=0 nothing is"),
        (["grpo.eval_truth=true", "grpo.prompt_template='{prompt}?'"], "a world's base model reads prompts without a"),
        (["grpo.dynamic_sampling_rounds=0"], "grpo.dynamic_sampling_rounds=0: must be at least 1"),
        (["grpo.ref_model_sync_steps=0"], "grpo.ref_model_sync_steps=0: must be at least 1"),
        (["grpo.ref_model_mixup_alpha=0"], "grpo.ref_model_mixup_alpha=0.0: the policy's share"),
        (["grpo.sync_ref_model=true", "grpo.beta=0"], "grpo.sync_ref_model=true: with grpo.beta=0 the run has no ref"),
        (["grpo.sync_ref_model=true"], "grpo.ref_model_sync_steps=10: the run has steps=4, so no step would"),
        (["grpo.sync_ref_model=true", "grpo.ref_model_sync_steps=2", "tuning.method=lora"],
         "grpo.ref_model_mixup_alpha=0.6: mixed adapters are not a mixture of policies"),
    ],
)  # fmt: skip
def test_invalid_options_are_rejected_with_a_remedy(training, arguments, message):
    status, _, err = training(*arguments)
    assert status == 1 and message in err and "Traceback" not in err
    assert not Path("run/metrics.jsonl").exists()
