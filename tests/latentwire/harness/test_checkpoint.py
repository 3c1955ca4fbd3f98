"""Checkpoints: written whole, read only by their configuration, and the last ones kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from latentwire.harness.checkpoint import (
    Checkpoints,
    OtherConfigurationError,
    finished_run,
    require_same,
    start_anew,
    start_anew_once,
)
from latentwire.harness.errors import UserError
from latentwire.harness.results import FORMAT, DamagedResultError, ResultWriteError, write_json
from tests.helpers.paths import ROOT

IDENTITY = {"seed": 0, "optimizer": {"learning_rate": 1e-4, "schedule": "cosine"}}


def state(value: float) -> dict[str, object]:
    return {"weights": {"w": torch.full((3,), value)}, "generator": torch.Generator().get_state(), "seen": [1, "a"]}


def test_the_newest_checkpoint_is_read_unchanged(tmp_path):
    saved = Checkpoints(tmp_path, IDENTITY)
    assert saved.latest() is None
    saved.save(5, state(0.1))
    saved.save(10, state(0.2))
    step, found = Checkpoints(tmp_path, IDENTITY).latest()
    assert step == 10
    assert torch.equal(found["weights"]["w"], torch.full((3,), 0.2))
    assert torch.equal(found["generator"], torch.Generator().get_state())
    assert found["seen"] == [1, "a"]


@pytest.mark.parametrize("keep", [1, 2])
def test_the_last_checkpoints_by_step_are_kept(tmp_path, keep):
    saved = Checkpoints(tmp_path, IDENTITY, keep)
    for step in (9, 10, 100, 99_999_999):
        saved.save(step, state(step))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000100.pt", "step-99999999.pt"][-keep:]


def test_keeping_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match="keep_checkpoints=0"):
        Checkpoints(tmp_path, IDENTITY, 0)


def test_another_configuration_is_named(tmp_path):
    Checkpoints(tmp_path, IDENTITY).save(1, state(0))
    other = {"seed": 0, "optimizer": {"learning_rate": 2e-4, "schedule": "cosine"}}
    with pytest.raises(UserError, match=r"optimizer.learning_rate was 0.0001 and is 0.0002\).*force=true"):
        Checkpoints(tmp_path, other).latest()


def test_differences_are_named_three_at_a_time():
    with pytest.raises(
        UserError, match=r"a was 1 and is 2; b was 1 and is not set; c was not set and is 1; and 1 more"
    ):
        require_same({"a": 1, "b": 1, "d": {}}, {"a": 2, "c": 1}, "here")
    require_same({"a": [1, 2]}, {"a": (1, 2)}, "here")


@pytest.mark.parametrize("key", ["encoder=group_means", "sampler_source"])
def test_an_edited_plugin_is_named_as_such(key):
    with pytest.raises(OtherConfigurationError, match=rf"\({key}: its module was edited\)"):
        require_same({key: "d3fe"}, {key: "f2e4"}, "here")
    with pytest.raises(OtherConfigurationError, match=rf"\({key} was None and is f2e4\)"):
        require_same({key: None}, {key: "f2e4"}, "here")


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"no archive at all"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_older(tmp_path, damage, capsys):
    saved = Checkpoints(tmp_path, IDENTITY)
    saved.save(1, state(1))
    saved.save(2, state(2))
    newest = tmp_path / "step-00000002.pt"
    newest.write_bytes(damage(newest.read_bytes()))
    step, found = saved.latest()
    assert (step, float(found["weights"]["w"][0])) == (1, 1.0)
    assert "step-00000002.pt is damaged" in capsys.readouterr().err
    (tmp_path / "step-00000001.pt").write_bytes(b"")
    with pytest.raises(UserError, match="none of its 2 checkpoints can be read"):
        saved.latest()


def test_code_in_a_checkpoint_is_not_run(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    saved = Checkpoints(tmp_path, IDENTITY)
    saved.save(1, {"evil": Evil()})
    with pytest.raises(UserError, match="none of its 1"):
        saved.latest()
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_killed_while_writing_leaves_the_older_one(tmp_path):
    """The process dies with the new file half written; the rest of it is removed."""
    Checkpoints(tmp_path, IDENTITY).save(1, state(1))
    script = (
        "import os, signal, sys, pathlib, torch\n"
        "from latentwire.harness import checkpoint\n"
        "def half(content, file):\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "checkpoint.torch.save = half\n"
        "checkpoint.Checkpoints(pathlib.Path(sys.argv[1]), {}).save(2, {})\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert len(list(tmp_path.iterdir())) == 2
    assert Checkpoints(tmp_path, IDENTITY).latest()[0] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001.pt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_keeps_the_older_checkpoint(tmp_path, monkeypatch):
    saved = Checkpoints(tmp_path, IDENTITY)
    saved.save(1, state(1))
    from latentwire.harness import results

    real = os.fdopen
    monkeypatch.setattr(results.os, "fdopen", lambda handle, mode: os.close(handle) or open("/dev/full", "wb", 0))  # noqa: PTH123, SIM115
    with pytest.raises(ResultWriteError, match="No space left"):
        saved.save(2, state(2))
    monkeypatch.setattr(results.os, "fdopen", real)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001.pt"]


def test_a_finished_run_is_found_by_its_configuration(tmp_path):
    assert finished_run(tmp_path, IDENTITY) is None
    write_json(tmp_path / "result.json", {"format": FORMAT, "identity": IDENTITY, "accuracy": 0.5})
    assert finished_run(tmp_path, IDENTITY)["accuracy"] == 0.5
    with pytest.raises(UserError, match="seed was 0 and is 1"):
        finished_run(tmp_path, {**IDENTITY, "seed": 1})
    write_json(tmp_path / "result.json", [1])
    with pytest.raises(DamagedResultError, match="not the result of a training run"):
        finished_run(tmp_path, IDENTITY)


def test_runs_of_another_version_are_named_as_such(tmp_path):
    write_json(tmp_path / "result.json", {"identity": IDENTITY, "accuracy": 0.5})  # as 0.2.0 wrote it
    refused = "was written by another version of this project .format 1, now 2., .* force=true"
    with pytest.raises(OtherConfigurationError, match=refused):
        finished_run(tmp_path, IDENTITY)
    torch.save({"step": 1, "identity": IDENTITY, "state": {}}, tmp_path / "step-00000001.pt")
    with pytest.raises(OtherConfigurationError, match=refused):
        Checkpoints(tmp_path, IDENTITY).latest()


def test_starting_anew_keeps_earlier_files(tmp_path):
    start_anew(tmp_path / "nothing")
    for content in ("first", "second"):
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "weights").write_text(content)
        start_anew(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["replaced"]
    assert [(tmp_path / "replaced" / n / "model" / "weights").read_text() for n in "12"] == ["first", "second"]


def test_force_restarts_once_until_its_run_is_finished(tmp_path, capsys):
    saved = Checkpoints(tmp_path / "checkpoints", IDENTITY)
    write_json(tmp_path / "result.json", {"identity": IDENTITY})
    start_anew_once(tmp_path, saved)  # finished files move aside
    assert (tmp_path / "replaced" / "1" / "result.json").is_file() and not (tmp_path / "result.json").exists()
    saved.save(3, state(3))
    start_anew_once(tmp_path, saved)  # the same command after a kill
    assert saved.latest()[0] == 3 and "continuing it" in capsys.readouterr().err
    write_json(tmp_path / "result.json", {"identity": IDENTITY})
    start_anew_once(tmp_path, saved)  # the run is finished, so force restarts it
    assert saved.latest() is None and (tmp_path / "replaced" / "2" / "result.json").is_file()


def test_force_does_not_resume_another_configuration(tmp_path, capsys):
    other = Checkpoints(tmp_path / "checkpoints", {**IDENTITY, "seed": 5})
    start_anew_once(tmp_path, other)
    other.save(3, state(3))
    start_anew_once(tmp_path, Checkpoints(tmp_path / "checkpoints", IDENTITY))
    assert "seed was 5 and is 0" in capsys.readouterr().err
    assert (tmp_path / "replaced" / "1" / "checkpoints" / "step-00000003.pt").is_file()


def test_force_restarts_a_run_begun_without_it(tmp_path):
    saved = Checkpoints(tmp_path / "checkpoints", IDENTITY)
    saved.save(3, state(3))
    start_anew_once(tmp_path, saved)
    assert saved.latest() is None and (tmp_path / "replaced" / "1" / "checkpoints").is_dir()
