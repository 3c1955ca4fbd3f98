"""Where the model of a setting is found, and the messages for folders without one."""

import re
from pathlib import Path

import pytest

from kat.training.model_folder import differing_settings, require_model, run_folder, weights_folder
from latentwire.harness.errors import UserError


def write_model(folder: Path) -> Path:
    """Write a folder with the files that count as a model; their content does not matter here."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_a_model_is_found_by_its_folder_and_by_its_run(tmp_path):
    model = write_model(tmp_path / "run" / "model")
    (tmp_path / "run" / "config.json").write_text("{}")  # the settings of the run
    assert require_model("policy", tmp_path / "run") == require_model("policy", str(model)) == model
    plain = write_model(tmp_path / "plain")
    assert require_model("policy", plain) == plain
    assert [run_folder(folder) for folder in (model, plain)] == [tmp_path / "run", plain]


def test_the_weights_of_a_missing_folder_are_the_folder_itself(tmp_path):
    assert weights_folder(tmp_path / "nowhere") == tmp_path / "nowhere"


def test_a_path_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    model = write_model(tmp_path / "run" / "model")
    assert require_model("policy", "~/run") == model


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "a: no checkpoint given; write a=FOLDER, the folder of a finished run or of a model"),
        ("", "a: no checkpoint given; write a=FOLDER, the folder of a finished run or of a model"),
        ("none", "a=none: no such folder; give the folder of a finished run or of a model"),
        ("file", "a=file: no such folder; give the folder of a finished run or of a model"),
        ("empty", "a=empty: holds no model, neither config.json nor model/config.json; give the folder of a finished"),
        ("begun", "a=begun: holds no model, neither config.json nor model/config.json; this run is not finished"),
        ("hollow", "a=hollow: holds no model"),
        ("pickle", "a=pickle: pickle has its weights in x.bin, a pickle, which is not loaded"),
    ],
)
def test_a_folder_without_a_model_is_refused(tmp_path, monkeypatch, name, message):
    """A run whose model/ is empty is refused too, although its own config.json is there."""
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    for folder in ("empty", "begun/checkpoints", "hollow/model", "pickle"):
        Path(folder).mkdir(parents=True)
    for folder in ("hollow", "pickle"):
        Path(folder, "config.json").write_text("{}")
    Path("pickle/x.bin").touch()
    with pytest.raises(UserError, match="^" + re.escape(message)):
        require_model("a", name)


def test_the_messages_name_the_source_of_the_folder(tmp_path):
    with pytest.raises(UserError, match=r"give the folder of a finished run of task=reward$"):
        require_model("reward", tmp_path / "none", "a finished run of task=reward")


def test_runs_of_two_versions_differ_in_what_was_set():
    """Plugins, and settings that an earlier version lacks, are no difference; a value that only one run has is one."""
    old = {"grpo": {"beta": 0.04}, "seed": 0}
    new = {"grpo": {"beta": 0.04, "reward_settings": None}, "plugins": ["mine"], "extra": [], "seed": 0}
    assert differing_settings(old, new) == []
    new["grpo"] = {"beta": 0.1, "reward_settings": {"regex": {"pattern": "x"}}}
    assert differing_settings(old, new) == ["grpo.beta (0.04, 0.1)", "grpo.reward_settings.regex.pattern (-, x)"]
