"""The folder of a training run, without a loop: its journal, its checkpoints, and resuming."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from omegaconf import OmegaConf
from torch import nn

from latentwire.harness import run as module
from latentwire.harness.checkpoint import OtherConfigurationError
from latentwire.harness.errors import UserError
from latentwire.harness.results import DamagedResultError, truncate_jsonl
from latentwire.harness.run import Run, RunSpec
from latentwire.harness.tracking import TrainingRun
from tests.helpers.files import read_rows


def run_in(folder: Path, identity: str = "a", **changes) -> Run:
    settings = {"seed": 0, "checkpoint_every": 4, "keep_checkpoints": 9, "force": False, **changes}
    cfg = OmegaConf.create({"task": "latent", "name": "r", "out": str(folder), "tracker": {"name": "none"}, **settings})
    return Run(cfg, RunSpec.of(cfg), {"id": identity}, PartialState(cpu=True))


@pytest.mark.parametrize("name", ["checkpoint_every", "keep_checkpoints"])
def test_settings_out_of_their_range_are_named(tmp_path, name):
    assert run_in(tmp_path, **{name: 1}).spec == RunSpec(0, *((1, 9) if name == "checkpoint_every" else (4, 1)), False)
    with pytest.raises(UserError, match=rf"{name}=0: must be at least 1"):
        run_in(tmp_path, **{name: 0})
    with pytest.raises(UserError, match=rf"{name}=x: expected a whole number"):
        run_in(tmp_path, **{name: "x"})


def test_the_journal_keeps_metrics_and_timings_apart(tmp_path, monkeypatch):
    told = []

    class Recorder(TrainingRun):
        def log(self, step, numbers):
            told.append((step, dict(numbers)))

    monkeypatch.setattr(module, "start_run", lambda *_: Recorder())
    run = run_in(tmp_path)
    assert run.begin({}, 2) == (0, {})
    run.log(1, {"loss": 0.5}, {"seconds": 2.0})
    run.log(2, {"loss": 0.25}, {"seconds": 3.0})
    assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
    assert read_rows(tmp_path / "timings.jsonl") == [{"step": 1, "seconds": 2.0}, {"step": 2, "seconds": 3.0}]
    assert told == [(1, {"loss": 0.5, "seconds": 2.0}), (2, {"loss": 0.25, "seconds": 3.0})]


def test_checkpoints_are_due_every_few_steps_and_at_the_end(tmp_path):
    run = run_in(tmp_path)
    run.begin({}, 10)
    assert [step for step in range(1, 11) if run.is_due(step)] == [4, 8, 10]


def test_a_resumed_run_restores_state_and_drops_later_rows(tmp_path, capsys):
    before, after = nn.Linear(2, 2), nn.Linear(2, 2)
    assert not torch.equal(before.weight, after.weight)
    run = run_in(tmp_path)
    run.begin({"layer": before}, 5, "evaluations.jsonl")
    for step in range(6):
        run.append("evaluations.jsonl", [{"step": step}])
        run.log(step, {}, {})
        if step % 4 == 0:
            run.save(step, {"layer": before}, {"more": [step]})
        if step == 4:
            break
    run.append("evaluations.jsonl", [{"step": 5}, {"step": 6}])
    run.log(5, {}, {})
    assert run_in(tmp_path).begin({"layer": after}, 5, "evaluations.jsonl")[0] == 4
    assert "going on after step 4 of 5" in capsys.readouterr().err
    assert torch.equal(before.weight, after.weight)
    for name in ("evaluations", "metrics", "timings"):
        assert [row["step"] for row in read_rows(tmp_path / f"{name}.jsonl")] == [0, 1, 2, 3, 4]
    assert run_in(tmp_path).begin({}, 5)[1]["more"] == [4]


def test_rows_before_the_first_checkpoint_are_dropped(tmp_path):
    """A run killed before its first checkpoint starts again."""
    run = run_in(tmp_path)
    run.begin({}, 5)
    run.append("evaluations.jsonl", [{"step": 0}])
    run_in(tmp_path).begin({}, 5, "evaluations.jsonl")
    assert read_rows(tmp_path / "evaluations.jsonl") == []


def test_another_configuration_is_refused_before_writing(tmp_path):
    run = run_in(tmp_path)
    run.begin({}, 1)
    run.save(1, {}, {})
    with pytest.raises(OtherConfigurationError, match="id was a and is b"):
        run_in(tmp_path, "b", seed=7).begin({}, 1)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 0


def test_a_finished_run_is_found_and_force_moves_it_aside(tmp_path):
    run = run_in(tmp_path)
    assert run.finished() is None
    (tmp_path / "result.json").write_text(json.dumps({**run.about(), "f1": 0.5}))
    found = run_in(tmp_path).finished()
    assert (found["f1"], found["identity"], found["name"], found["processes"]) == (0.5, {"id": "a"}, "r", 1)
    assert found["versions"]["torch"] == torch.__version__ and found["config"]["out"] == str(tmp_path)
    with pytest.raises(OtherConfigurationError):
        run_in(tmp_path, "b").finished()
    assert run_in(tmp_path, force=True).finished() is None
    assert (tmp_path / "replaced/1/result.json").is_file()


def test_a_truncated_line_is_removed_when_a_run_resumes(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    truncate_jsonl(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    path.write_text('{"st')
    truncate_jsonl(path, 2)
    assert path.read_text() == ""
    path.write_text('{"step": 1}\n{"loss": 0.5}\n')
    with pytest.raises(DamagedResultError, match=r"metrics.jsonl, line 2, has no step: delete it"):
        truncate_jsonl(path, 2)
    truncate_jsonl(tmp_path / "none.jsonl", 2)
    assert not (tmp_path / "none.jsonl").exists()
