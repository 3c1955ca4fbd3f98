"""Recorded experiments: each composes the config of its recorded command, and its opening comment is complete."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from latentwire.harness import app
from latentwire.harness.grids import expand, factors
from latentwire.harness.paths import CONF
from latentwire.harness.session import Session, Task
from run import TASKS as RUN_TASKS
from train import TASKS as TRAIN_TASKS

NAMES = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml") if path.stem != "none")
FIELDS = ("Command", "Same as", "Machine", "Recorded", "Score")
NAMING = {"out", "sweep", "pair", "hydra"}  # keys that an experiment may have and its command lacks


def header(name: str) -> dict[str, str]:
    """Return the fields of an experiment's opening comment; further indented lines continue a field."""
    lines = (CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    found: dict[str, str] = {"question": lines[1].lstrip("# ")}
    key = "question"
    for line in lines[2:]:
        if not line.startswith("#"):
            break
        if match := re.fullmatch(r"#   (\S+(?: \S+)?)  +(\S.*)", line):
            key, found[match[1]] = match[1], match[2]
        else:
            found[key] += " " + line.lstrip("# ")
    return found


def command_of(text: str) -> tuple[str, list[str]]:
    """Return the entry and the overrides of a command line, without a trailing remark in round brackets."""
    words = shlex.split(re.sub(r"\s{2,}\(.*\)$", "", text))
    assert words[0] == "python"
    return words[1].removesuffix(".py"), [word for word in words[2:] if word != "-m"]


def composed(entry: str, overrides: list[str]) -> tuple[dict[str, Any], list[list[str]]]:
    """Return the config that all jobs of a command have in common, and the overrides of each job."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    varied = [override for override in parsed if override.is_sweep_override()]
    fixed = [str(override.input_line) for override in parsed if not override.is_sweep_override()]
    cfg = compose(entry, overrides=fixed)
    session = Session(entry, RUN_TASKS if entry == "run" else TRAIN_TASKS)
    jobs = expand(factors(cfg.sweep) if session.takes_sweeps(cfg.task) else [], varied)
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}, jobs


@pytest.fixture
def conf() -> Iterator[None]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def test_there_are_experiments_of_both_entries():
    entries = [command_of(header(name)["Command"])[0] for name in NAMES]
    assert len(NAMES) >= 8
    assert min(entries.count("run"), entries.count("train")) >= 3


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_says_how_it_was_run(name):
    fields = header(name)
    assert fields["question"].count("?") == 1
    assert [field for field in FIELDS if field not in fields] == []
    assert re.match(r"20\d\d-\d\d-\d\d, commit [0-9a-f]{7}", fields["Recorded"])
    assert re.search(r"n = [\d,]+|over 3 seeds|on the first 8 questions", fields["Score"])
    assert f"experiment={name}" in fields["Command"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("conf")
def test_an_experiment_is_the_command_that_it_records(name):
    fields = header(name)
    entry, overrides = command_of(fields["Same as"])
    own_entry, own_overrides = command_of(fields["Command"])
    assert own_entry == entry
    config, jobs = composed(entry, overrides)
    own_config, own_jobs = composed(entry, [o for o in own_overrides if not o.startswith("pair=")])
    assert own_jobs == jobs
    differing = {key for key in config.keys() | own_config.keys() if config.get(key) != own_config.get(key)}
    assert differing <= NAMING


@pytest.mark.slow
@pytest.mark.usefixtures("conf")
def test_no_two_experiments_write_to_one_folder():
    folders = {}
    for name in NAMES:
        fields = header(name)
        for key in ("Command", "Same as"):
            entry, overrides = command_of(fields[key])
            out = composed(entry, [o for o in overrides if not o.startswith("pair=")])[0]["out"]
            folders.setdefault(out, set()).add((name, key))
    shared = {out: users for out, users in folders.items() if any(key == "Command" for _, key in users)}
    assert {out: users for out, users in shared.items() if len({name for name, _ in users}) > 1} == {}


@pytest.mark.slow
def test_an_experiment_with_a_preset_runs_as_its_sweep(cli):
    status, out, err = cli("experiment=embed35_text", "task=list")
    assert status == 0, err
    assert "35 configurations" in err
    assert out.splitlines()[0].startswith("baseline ")


@pytest.mark.slow
def test_an_experiment_runs_and_writes_where_it_says(cli):
    status, out, err = cli("experiment=auto_unseen", "model=tiny_random", "samples=2", "only=baseline|auto")
    assert status == 0, err
    assert "=== source rotated, 2 examples ===" in out
    found = {path.name for path in Path("outputs/auto_unseen").glob("*.json")}
    assert {"summary.json", "auto.json", "baseline@low_rank64.json"} <= found


@pytest.mark.slow
def test_a_training_task_runs_the_grid_of_an_experiment(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    app.launch("train", {"grpo": Task(run="builtins:print")}, ["experiment=grpo_arms"])
    lines = [line for line in capfd.readouterr().out.splitlines() if line]
    runs = [(re.search(r"'sampler': {'name': '(\w+)'", line), re.search(r"'seed': (\d)", line)) for line in lines]
    assert [(sampler[1], seed[1]) for sampler, seed in runs] == [
        (sampler, seed) for sampler in ("uniform", "density") for seed in "012"
    ]


@pytest.mark.parametrize("group", ["experiment=atlas,embed35_text", "sweep=smoke,embed35"])
def test_two_experiments_at_once_are_refused(cli, group):
    status, _, err = cli("-m", group)
    assert status == 1
    assert err == f"error: {group}: each is a sweep of its own; run one after the other\n"
