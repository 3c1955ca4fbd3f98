"""Arms from the command line: a plugin's, and difficulty, which learns from rewards and resumes after SIGKILL."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from kat.sampling.arms import arm_settings
from tests.helpers.files import read_json, read_rows, write_rows
from tests.helpers.plugins import forget, forgotten_afterwards
from tests.helpers.programs import start

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

PAIRS = ["model=tiny_random", "device=cpu", "pairs=file", "path=pairs.jsonl", "held_out=0.3", "tuning.blocks=1"]
GRPO = [
    *PAIRS,
    "sampler=difficulty",
    "steps=6",
    "checkpoint_every=2",
    "grpo.prompts_per_step=2",
    "grpo.num_generations=3",
    "grpo.max_completion_length=6",
    "grpo.eval_prompts=0",
    "grpo.reward_funcs=[tests.helpers.rewards:vowels]",
]
REWARD = [*PAIRS, "task=reward", "sampler=difficulty", "steps=6", "checkpoint_every=2", "prompts_per_step=2"]
COMMANDS = {"grpo": GRPO, "reward": REWARD}
SAME = ("metrics.jsonl", "ledger.jsonl")

PLUGIN = '''"""An arm that draws each prompt once before it draws any prompt again."""

import torch

from kat.sampling.arms import AdaptiveWeights, register_arm


@register_arm("in_turn")
class InTurn(AdaptiveWeights):
    """Prompts that a step has drawn weigh 0 until all prompts had their turn."""

    def __init__(self, inputs, *, first: float = 1.0):
        super().__init__(inputs)
        self.first = first
        self.memory = {"turns": torch.zeros(self.num_prompts)}

    def weigh(self):
        weights = (self.memory["turns"] == self.memory["turns"].min()).double()
        weights[0] *= self.first
        return weights

    def observe(self, results):
        for row in {result.row for result in results}:
            self.memory["turns"][row] += 1

    def metrics(self):
        return {"sampler/turns": float(self.memory["turns"].sum())}
'''


@pytest.fixture
def here(tmp_path):
    """Return the working folder, with pairs in it."""
    questions = [f"What is the {noun} of {place}?" for noun in ("capital", "river", "king") for place in "ABCDEFGH"]
    write_rows(tmp_path / "pairs.jsonl", ({"prompt": q, "chosen": "It is.", "rejected": "No"} for q in questions))
    return tmp_path


@pytest.fixture
def plugin(here) -> Iterator[Path]:
    """Yield the file of a plugin with an arm, which Python can import for the time of the test."""
    path = here / "plugin_in_turn.py"
    path.write_text(PLUGIN, encoding="utf-8")
    with forgotten_afterwards(here):
        yield path


def run_folder(task: str, name: str = "difficulty") -> Path:
    return Path("outputs") / task / f"{name}_seed0"


def test_a_plugins_arm_needs_no_file(here, trains, plugin):
    """The sampler's settings are its keyword arguments, and a change of its module makes another run."""
    command = [*GRPO, "plugins=[plugin_in_turn]", "sampler=in_turn", "sampler.first=1000000"]
    status, _, said = trains(*command)
    assert status == 0, said
    folder = run_folder("grpo", "in_turn")
    result = read_json(folder / "result.json")
    assert result["config"]["sampler"] == {"name": "in_turn", "first": 1000000}
    identity = result["identity"]
    assert (identity["sampler"], identity["sampler_settings"]) == ("in_turn", {"first": 1000000.0})
    assert identity["weights_sha256"] is None and not (here / "outputs/kat/weights.jsonl").exists()
    assert arm_settings("in_turn", {}) == {"first": 1.0}
    ledger = read_rows(folder / "ledger.jsonl")
    assert sum(row["drawn"] for row in ledger) == 12 and ledger[0]["drawn"] == 2  # the first step draws row 0 twice
    assert sum(row["intended"] for row in ledger) == pytest.approx(12)
    turns = [row["sampler/turns"] for row in read_rows(folder / "metrics.jsonl")]
    assert turns[-1] == sum(row["drawn"] > 0 for row in ledger) >= 7  # no prompt came back in a later step

    forget("plugin_in_turn")
    plugin.write_text(PLUGIN.replace("*= self.first", "*= self.first + 1"), encoding="utf-8")
    status, _, said = trains(*command)
    assert status == 1 and "sampler_source: its module was edited" in said, said


@pytest.mark.float_path
@pytest.mark.parametrize("task", COMMANDS)
def test_a_killed_run_draws_as_an_undisturbed_one(task, here, trains, tmp_path_factory, monkeypatch):
    status, _, said = trains(*COMMANDS[task])
    assert status == 0, said
    whole = here / run_folder(task)
    other = tmp_path_factory.mktemp("killed")
    shutil.copy(here / "pairs.jsonl", other)
    shutil.copytree(here / "outputs" / "kat", other / "outputs" / "kat")
    journal = other / run_folder(task) / "metrics.jsonl"
    killed = start("train", *COMMANDS[task], folder=other)
    killed.kill_when(lambda: journal.is_file() and journal.read_bytes().count(b"\n") >= 3)
    assert not (other / run_folder(task) / "result.json").exists()
    monkeypatch.chdir(other)
    status, _, said = trains(*COMMANDS[task])
    assert status == 0 and "going on after step " in said, said
    for name in SAME:
        assert (other / run_folder(task) / name).read_bytes() == (whole / name).read_bytes(), name

    rows = read_rows(whole / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    ledger = read_rows(whole / "ledger.jsonl")
    assert sum(row["drawn"] for row in ledger) == 12
    assert sum(row["intended"] for row in ledger) == pytest.approx(12)
    assert rows[-1]["sampler/seen"] == pytest.approx(sum(row["drawn"] > 0 for row in ledger) / len(ledger))
    assert rows[-1]["sampler/relative"] == 0 and 0 <= rows[-1]["sampler/success_rate"] <= 1
    assert rows[-1]["sampler/ess_share"] < rows[0]["sampler/ess_share"] < 1  # the weights follow the rewards
    assert {row["intended"] for row in ledger} != {12 / len(ledger)}


@pytest.mark.float_path
def test_two_processes_observe_as_one_does(here, trains, tmp_path_factory):
    """The first step's rewards must reach the right prompts in both processes, or the second step draws others."""
    rewards = "grpo.reward_funcs=[tests.helpers.rewards:of_place]"
    command = [*GRPO, "grpo.prompts_per_step=4", "steps=3", "sampler.rate=1.0", rewards]
    status, _, said = trains(*command)
    assert status == 0, said
    assert len({row["intended"] for row in read_rows(run_folder("grpo") / "ledger.jsonl")}) >= 3  # by reward
    other = tmp_path_factory.mktemp("two")
    shutil.copy(here / "pairs.jsonl", other)
    shutil.copytree(here / "outputs" / "kat", other / "outputs" / "kat")
    started = start("train", *command, folder=other, ranks=2)
    assert started.wait() == [0, 0], started.told()
    for one, two in zip(*(read_rows(top / run_folder("grpo") / "ledger.jsonl") for top in (here, other)), strict=True):
        assert one["drawn"] == two["drawn"]
        assert one["intended"] == pytest.approx(two["intended"], rel=1e-6)


def test_the_reward_model_may_have_the_arm_too(here, trains):
    """It gets the settings of the arm's file, and the policy learns from scores, not from shares of success."""
    command = [*GRPO, "steps=2", "sampler.floor=0.3", "reward_sampler=difficulty", "grpo.reward_funcs=[model]"]
    status, _, said = trains(*command)
    assert status == 0, said
    policy, judge = (read_json(run_folder(task) / "result.json")["identity"] for task in ("grpo", "reward"))
    assert policy["sampler_settings"] == {"rate": 0.5, "floor": 0.3}
    assert judge["sampler_settings"] == {"rate": 0.5, "floor": 0.1}
    metrics = read_rows(run_folder("reward") / "metrics.jsonl")
    assert metrics[-1]["sampler/seen"] > 0 and metrics[-1]["sampler/relative"] == 0


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("sampler.rate=2", "sampler.rate=2.0: must be above 0 and at most 1"),
        ("sampler.floor=low", "sampler.floor=low: expected a number"),
        ("sampler.k=3", "sampler.k=3: no such setting; sampler=difficulty has sampler.rate, sampler.floor\n"),
        ("reward_sampler=rarest", "reward_sampler=rarest: unknown; use one of "),
    ],
)
def test_a_bad_setting_is_refused_before_training(here, trains, setting, reason):
    status, _, said = trains(*GRPO, "grpo.reward_funcs=[model]", setting)
    assert status == 1 and reason in said, said
    assert not Path("outputs/grpo").exists() and not Path("outputs/reward").exists()


def test_a_plugins_setting_needs_a_default(trains, plugin):
    plugin.write_text(PLUGIN.replace("first: float = 1.0", "first: float"), encoding="utf-8")
    status, _, said = trains(*GRPO, "plugins=[plugin_in_turn]", "sampler=in_turn")
    assert status == 1 and "sampler=in_turn: its setting first has no default; write first=VALUE" in said, said
