"""--help: what the program does, its tasks and commands; and the errors for a task that the entry does not have."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

import run
import train
from latentwire.harness import app
from latentwire.harness.paths import CONF, ROOT


def help_of(entry: str, capfd, *arguments: str) -> str:
    module = {"run": run, "train": train}[entry]
    app.launch(entry, module.TASKS, list(arguments), about=module.__doc__)
    captured = capfd.readouterr()
    assert captured.err == ""
    return captured.out


@pytest.mark.parametrize("entry", ["run", "train"])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_has_the_tasks_a_line_each(entry, flag, capfd):
    text = help_of(entry, capfd, flag, "seed=3")
    tasks = {"run": run, "train": train}[entry].TASKS
    section = text.split("Tasks, chosen with task=NAME:\n")[1].split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in section] == list(tasks)
    assert all(len(line.split()) >= 4 and len(line) <= 120 for line in section)
    assert f"python {entry}.py --cfg job" in text and "docs/configuration.md" in text
    assert text.count("\n") < 35


@pytest.mark.slow
@pytest.mark.parametrize("entry", ["run", "train"])
def test_help_has_five_commands_that_compose(entry, capfd):
    commands = re.findall(r"^python (\w+)\.py(.*?)(?:\s{2,}|$)", help_of(entry, capfd, "--help"), flags=re.MULTILINE)
    commands = [(name, rest) for name, rest in commands if not rest.startswith(" --")]
    assert len(commands) == 5
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONF), version_base="1.3"):
        for name, rest in commands:
            assert name == entry
            compose(entry, overrides=[w.split(",")[0] for w in shlex.split(rest) if w != "-m"])


def test_the_entry_prints_its_help_and_runs_nothing(tmp_path):
    done = subprocess.run([sys.executable, str(ROOT / "run.py"), "-h"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("Evaluate, measure, analyse.")
    assert list(tmp_path.iterdir()) == []


def test_hydras_own_help_is_still_there(cli):
    status, out, _ = cli("--hydra-help")
    assert status == 0
    assert "--multirun" in out


def test_all_settings_can_be_shown(cli):
    status, out, _ = cli("--cfg", "job", "experiment=atlas")
    assert status == 0
    assert "samples: 200\n" in out


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("task=latent", "task=latent: belongs to train.py; use python train.py task=latent"),
        ("sweep=latent_screen", "sweep=latent_screen: belongs to train.py; use python train.py sweep=latent_screen"),
        ("experiment=latent_2x", "experiment=latent_2x: belongs to train.py; use python train.py experiment=latent_2x"),
        ("task=dance", f"task=dance: not a task of run.py; use one of {', '.join(run.TASKS)}"),
    ],
)
def test_choices_of_the_other_entry_are_refused(cli, argument, message):
    assert cli(argument) == (1, "", f"error: {message}\n")


@pytest.mark.parametrize("argument", ["model=gpt", "experiment=mars", "sweep=all"])
def test_a_wrong_choice_lists_the_valid_ones(cli, argument):
    status, _, err = cli(argument)
    group, choice = argument.split("=")
    names = ", ".join(sorted(path.stem for path in (CONF / group).glob("*.yaml")))
    assert (status, err) == (1, f"error: {group}={choice}: unknown; use one of {names}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("experiment=auto_unseen", "eps=1"), "eps=1: embed_transform=baseline has no such dial"),
        (("experiment=latent_bottleneck_repaired", "rank=2"), "rank=2: embed_source=latent has no such dial"),
        (("experiment=atlas", "eps=1"), "eps=1: the configurations of sweep=atlas set eps themselves"),
    ],
)
def test_a_stray_dial_is_held_against_the_experiments_choice(cli, arguments, message):
    status, _, err = cli(*arguments)
    assert status == 1
    assert err.startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("argument", "instead"),
    [
        ("floor=0.2", "min_clean_score=0.2"),
        ("min_clean_f1=0.2", "min_clean_score=0.2"),
        ("wished=0.02,0.03", "target_difference=0.02,0.03"),
        ("until=3", "stop_epoch=3"),
        ("keep=4", "keep_checkpoints=4"),
        ("asked=8", "num_examples=8"),
        ("grpo.kl_correction=true", "grpo.use_bias_correction_kl=true"),
        ("grpo.normalisation=token", "grpo.loss_type=dapo"),
        ("grpo.normalisation=sequence,token", "grpo.loss_type=grpo,dapo"),
        ("grpo.scale=none", "grpo.scale_rewards=none"),
        ("grpo.mask_truncated=true", "grpo.mask_truncated_completions=true"),
    ],
)
def test_an_old_name_of_a_setting_says_the_new_one(cli, argument, instead):
    expected = f"error: {argument}: this setting has a new name; use {instead}\n"
    assert cli(argument) == (1, "", expected)


def test_every_new_name_of_a_setting_exists():
    """Each new name in renamed.yaml is a key of some config file, and no old name is."""
    renamed = OmegaConf.to_container(OmegaConf.load(CONF / "renamed.yaml"))
    assert isinstance(renamed, dict)
    configs = [OmegaConf.load(path) for path in CONF.rglob("*.yaml") if path.name != "renamed.yaml"]

    def exists(key: str) -> bool:
        parts = key.split(".")
        return any(parts[0] in config and (len(parts) < 2 or parts[1] in config[parts[0]]) for config in configs)

    for old, new in renamed.items():
        assert exists(new["name"] if isinstance(new, dict) else new)
        assert not exists(old)
