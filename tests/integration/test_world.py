"""The tasks world and truth from the command line: files, quality, resuming, and GRPO on the result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kat.grpo.rollout import Sampling, sample
from kat.records import GrpoResult
from kat.world.exact import exact_truth
from kat.world.language import WorldSpec, make_world
from kat.world.learning import WorldLearning
from kat.world.truth import read_questions, truth_of_completions
from latentwire.lm.models import load_model
from latentwire.lm.spec import ModelSpec

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

SMALL = [
    "task=world", "world.topics=4", "world.prompts=120", "world.attributes=2", "base.hidden_size=64",
    "base.intermediate_size=128", "base.heads=2", "steps=150", "base.lines_per_step=32", "optimizer.learning_rate=8e-3",
]  # fmt: skip


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("world") / "world"


@pytest.fixture
def small(shared: Path, tmp_path: Path, trains) -> Path:
    """A world of four topics in the folder of the test, a copy of one that is made once."""
    if not shared.exists():
        assert trains(*SMALL, f"out={shared}")[0] == 0
    return Path(shutil.copytree(shared, tmp_path / "world"))


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_world_has_prompts_topics_and_a_model_that_answers(small, trains, cli):
    """After 150 steps the small model is valid at least twice as often as an answer of any topic would be."""
    rows, result = read(small / "prompts.jsonl"), json.loads((small / "result.json").read_text())
    assert rows == make_world(WorldSpec(4, 120, 1.0, 2), 0).prompts()
    assert json.loads((small / "clusters.json").read_text())["labels"] == {row["id"]: row["topic"] for row in rows}
    found = result["truth"]["all"]
    assert 0.3 < found["validity"] < 0.8 and found["entropy_share"] > 0.85 and result["ended"] >= 0.95
    assert result["weights"] == sum(
        weight.numel() for weight in load_file(small / "model" / "model.safetensors").values()
    )
    before = (small / "result.json").read_bytes()
    status, _, said = trains(*SMALL, "out=world")
    assert status == 0 and "finished before" in said and (small / "result.json").read_bytes() == before

    arguments = ["task=truth", "policy=world", "prompts_file=world/prompts.jsonl", "out=truth"]
    status, shown, _ = cli(*arguments)
    assert status == 0 and "all topics: valid" in shown
    report = json.loads(Path("truth/truth.json").read_text())
    assert report["truth"]["all"]["entropy"] == pytest.approx(found["entropy"], abs=1e-4)
    assert [row["id"] for row in read(Path("truth/truth.jsonl"))] == [row["id"] for row in rows]


def test_exact_truth_agrees_with_the_samples_of_a_policy(small):
    """Prompts of different lengths share batches; the sampler of task=grpo draws 64 completions of each."""
    lm = load_model(ModelSpec("world", "path", path=str(small / "model")), torch.device("cpu"), torch.float32)
    questions = read_questions(small / "prompts.jsonl")[::6]
    rows, whole = (exact_truth(lm.model, lm.tokenizer, questions, budget) for budget in (500, 10**6))
    assert [row["id"] for row in rows] == [row["id"] for row in whole] == [one.id for one in questions]
    assert [row["validity"] for row in rows] == pytest.approx([row["validity"] for row in whole], abs=1e-5)
    prompts = [lm.tokenizer(f"{one.text} =>")["input_ids"] for one in questions]
    sampling = Sampling(64, 6, 1.0, 1.0, 4096)
    drawn = sample(lm.model, prompts, [(one.id,) for one in questions], sampling, seed=0,
                   ends=frozenset({lm.tokenizer.eos_token_id}))  # fmt: skip
    texts = {one.id: [lm.tokenizer.decode(each.ids, skip_special_tokens=True) for each in group]
             for one, group in zip(questions, drawn, strict=True)}  # fmt: skip
    sampled, means = truth_of_completions(questions, texts)
    n = len(questions)
    assert sum(row["validity"] for row in rows) / n == pytest.approx(
        sum(row["validity"] for row in sampled) / n, abs=4 * 0.5 / (64 * n) ** 0.5
    )
    assert sum(row["entropy"] or 0 for row in rows) / n == pytest.approx(
        sum(row["entropy"] or 0 for row in sampled) / n, abs=0.1
    )
    assert means["all"]["prompts"] == n


def test_a_stopped_world_resumes_to_the_same_model(small, trains, monkeypatch):
    step, stopped = WorldLearning.step, []

    def stops(self: WorldLearning, number: int) -> object:
        if number == 130 and not stopped:
            stopped.append(number)
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(WorldLearning, "step", stops)
    assert trains(*SMALL, "out=again")[0] != 0 and not Path("again/result.json").exists()
    status, _, said = trains(*SMALL, "out=again")
    assert status == 0 and "going on after step 100 of 150" in said
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (small, Path("again")))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert (small / "metrics.jsonl").read_bytes() == Path("again/metrics.jsonl").read_bytes()


def test_grpo_trains_on_a_world_with_the_oracle(small, trains):
    status, _, said = trains(
        "task=grpo", "policy=world/model", "prompts_file=world/prompts.jsonl", "grpo.reward_funcs=[valid_answer]",
        "sampler=oracle", "out=grpo", "steps=12", "tuning.method=all", "grpo.max_completion_length=6",
        "grpo.eval_prompts=40", "grpo.eval_generations=8", "grpo.eval_every=12", "optimizer.learning_rate=2e-3",
    )  # fmt: skip
    assert status == 0, said
    result: GrpoResult = json.loads(Path("grpo/result.json").read_text())
    before, after = result["held_out_before"], result["held_out"]
    assert before is not None and after is not None and after["gain_interval"][0] > 0
    topics = {row["id"]: row["topic"] for row in read(Path("world/prompts.jsonl"))}
    intended = dict.fromkeys(range(4), 0.0)
    for row in read(Path("grpo/ledger.jsonl")):
        intended[topics[row["id"]]] += row["intended"]
    assert list(intended.values()) == pytest.approx([12 * 4 / 4] * 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["policy=nowhere", "prompts_file=world/prompts.jsonl"], "policy=nowhere: not the folder of a model"),
        (["prompts_file=world/prompts.jsonl"], "policy=None: not the folder of a model"),
        (["policy=world"], "prompts_file: no file given"),
        (["policy=world", "prompts_file=none.jsonl"], "prompts_file=none.jsonl: no such file"),
    ],
)
def test_truth_explains_what_is_missing(small, cli, arguments, message):
    status, _, said = cli("task=truth", *arguments)
    assert status == 1 and message in said


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("base.hidden_size=30", "base.hidden_size=30: must be a multiple of 8, twice base.heads"),
        ("base.layers=0", "base.layers=0: must be at least 1"),
        ("base.valid_share=0", "base.valid_share=0.0: must be above 0 and at most 1"),
        ("base.prompt_weight=2", "base.prompt_weight=2.0 base.initializer_range=0.06: must be from 0 to 1"),
        ("steps=0", "steps=0: must be at least 1"),
        ("world.prompts=60", "world.prompts=60: gives topics of 1 to 17 prompts"),
    ],
)
def test_settings_of_a_world_are_checked(trains, setting, message):
    status, _, said = trains("task=world", setting, "out=world")
    assert status == 1 and message in said
