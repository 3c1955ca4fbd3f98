"""A job needs its config and nothing else: in a process of its own it gives the same result as the command line."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

import run
from latentwire.harness.app import JobFunction
from latentwire.harness.paths import CONF
from latentwire.harness.session import Session
from tests.helpers.files import read_json
from tests.helpers.plugins import forgotten_afterwards
from tests.helpers.programs import environment
from tests.helpers.results import without_timings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

# Composes a config and calls the function of its task: no command line, no session, no sweeper.
JOB = """
import sys
from latentwire.harness.app import compose_config
from latentwire.harness.session import load_function

entry, function, *overrides = sys.argv[1:]
load_function(function)(compose_config(entry, overrides))
"""
# Calls a pickled function with a pickled config, and writes what it returns.
PICKLED = """
import json, pickle, sys
from pathlib import Path

function, cfg = pickle.loads(Path("job.pickle").read_bytes())
Path("returned.json").write_text(json.dumps(function(cfg)))
"""
EVALUATE = ["model=tiny_random", "samples=4", "shots=1", "max_new_tokens=3", "metrics=[likelihood]",
            "embed_source=noisy", "embed_transform=nearest_k", "k=3"]  # fmt: skip
LATENT = ["task=latent", "model=tiny_random", "encoder=bottleneck", "d_z=8", "loss=reconstruction", "epochs=1",
          "samples=12", "passages_per_step=6", "shots=1", "adapter_hidden=16", "out=run"]  # fmt: skip
PAIRS = ["task=pairs", "pairs=file", "path=mine.jsonl", "folder=kat"]


def own_process(script: str, *arguments: str, folder: Path) -> None:
    """Run a script in a fresh Python process."""
    command = [sys.executable, "-c", script, *arguments]
    ended = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def numbers_close(one: Any, other: Any) -> bool:
    """Return whether two JSON values are equal; floats may differ by rounding, which memory addresses can change."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(numbers_close(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(numbers_close, one, other))
    return one == pytest.approx(other, rel=1e-4, abs=1e-6) if isinstance(one, float) else one == other


def content(path: Path) -> list[Any]:
    """Return the JSON values of a file, without times and the commit, which may change between two commands."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = without_timings(read_json(path))
    return [{key: value for key, value in found.items() if key != "git_commit"}]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Return the working folder of the fresh process, with the same files as the command line has."""
    rows = [{"prompt": f"Name {n}.", "chosen": f"It is {n}.", "rejected": "No idea."} for n in range(6)]
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for each in (tmp_path, folder):
        (each / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("entry_name", "function", "overrides", "files"),
    [
        (
            "run",
            "latentwire.evaluation.task:run",
            EVALUATE,
            [f"outputs/single/nearest_k3_a0.5@noisy0.0dB.{ending}" for ending in ("json", "predictions.jsonl")],
        ),
        ("run", "kat.pipeline.prepare:pairs", PAIRS, ["kat/pairs_all.jsonl", "kat/pairs.json"]),
        (
            "train",
            "latentwire.latent_training.screening:run",
            LATENT,
            ["run/result.json", "run/metrics.jsonl"],
        ),
    ],
    ids=["evaluate", "pairs", "latent"],
)
def test_a_config_alone_gives_the_result_of_the_command_line(entry, elsewhere, entry_name, function, overrides, files):
    status, _, err = entry(entry_name, *overrides)
    assert status == 0, err
    own_process(JOB, entry_name, function, *overrides, folder=elsewhere)
    assert len(files) > 1
    for file in files:
        one, other = content(Path(file)), content(elsewhere / file)
        assert len(one) > 0
        assert numbers_close(one, other), file


PLUGIN = """
import torch
from kat.grpo.rewards import register_reward
from kat.sampling.arms import AdaptiveWeights, register_arm
from latentwire.transforms.base import Transform, register_transform

@register_transform("halve", label="halve{share}")
class Halve(Transform):
    def __init__(self, vocabulary, *, share: float = 0.5):
        super().__init__(vocabulary)
        self.share = share
    def repair(self, x, generator):
        return x * self.share

@register_arm("turns")
class Turns(AdaptiveWeights):
    def __init__(self, inputs):
        super().__init__(inputs)
        self.memory = {"seen": torch.zeros(self.num_prompts)}
    def weigh(self):
        return 1 / (1 + self.memory["seen"])
    def observe(self, results):
        for result in results:
            self.memory["seen"][result.row] += 1

@register_reward("says_it")
def says_it(completions, answer):
    return [float(a in text) for text, a in zip(completions, answer)]
"""


@pytest.mark.parametrize(
    ("entry_name", "function", "overrides", "file"),
    [
        ("run", "latentwire.evaluation.task:run",
         [*EVALUATE[:4], "embed_source=scaled", "embed_transform=halve", "share=0.25"],
         "outputs/single/halve0.25@scaled117.0.predictions.jsonl"),
        ("train", "kat.grpo.task:grpo",
         ["sampler=turns", "model=tiny_random", "prompts_file=sums.jsonl", "grpo.reward_funcs=[says_it]", "steps=2",
          "grpo.num_generations=2", "grpo.eval_prompts=0", "held_out=0", "out=policy"], "policy/ledger.jsonl"),
    ],
    ids=["evaluate", "grpo"],
)  # fmt: skip
def test_a_config_alone_finds_its_plugins(entry, elsewhere, tmp_path, entry_name, function, overrides, file):
    for folder in (tmp_path, elsewhere):
        (folder / "mine.py").write_text(PLUGIN, encoding="utf-8")
        rows = [{"prompt": f"What is {n} plus {n}?", "answer": str(2 * n)} for n in range(8)]
        (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    own_process(JOB, entry_name, function, *overrides, "plugins=[mine]", folder=elsewhere)
    with forgotten_afterwards(tmp_path):
        status, _, err = entry(entry_name, *overrides, "plugins=[mine]")
    assert status == 0, err
    assert numbers_close(content(Path(file)), content(elsewhere / file))


def test_a_pickled_job_gives_the_same_result(cli, elsewhere, tmp_path):
    """As a launcher that sends the jobs of a sweep to other processes or machines calls it."""
    plugin = "from latentwire.evaluation.metrics import register_metric\n"
    plugin += "register_metric('length', label='Length')(lambda prediction, references: min(1, len(prediction) / 99))\n"
    (elsewhere / "mine.py").write_text(plugin, encoding="utf-8")  # only the other process has it
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("run", overrides=[*EVALUATE, "plugins=[mine]", "metrics=[length]"])
    session = Session("run", dict(run.TASKS), sweeping=True)
    session.keep("evaluation", "key", lambda: lambda: "cannot be pickled")
    (elsewhere / "job.pickle").write_bytes(pickle.dumps((JobFunction(session), cfg)))
    own_process(PICKLED, folder=elsewhere)
    returned = read_json(elsewhere / "returned.json")
    assert returned == read_json(elsewhere / "outputs/single/nearest_k3_a0.5@noisy0.0dB.json")
    assert 0 < returned["scores"]["length"]["mean"] < 1
    assert cli(*EVALUATE, "metrics=[]")[0] == 0
    expected = read_json("outputs/single/nearest_k3_a0.5@noisy0.0dB.json")
    del returned["scores"]["length"]
    for result in (returned, expected):
        for key in ("config", "config_hash", "git_commit"):  # the first two have the plugin
            del result[key]
    assert numbers_close(without_timings(returned), without_timings(expected))
