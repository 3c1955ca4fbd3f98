"""The loop of every training task, with a task that adds up numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from latentwire.harness.errors import UserError
from latentwire.harness.run import RunSpec
from latentwire.harness.training import Learning, StepReport, TrainingJob, train
from tests.helpers.files import read_rows


class Counting(Learning):
    """Adds the number of each step to a weight; evaluates after step 3 and stops early after `enough`."""

    files = ("evaluations.jsonl",)

    def __init__(self, run, dies_at=None, enough=None, last=None, seen=None):
        super().__init__(run)
        self.steps, self.layer = 6, nn.Linear(1, 1)
        with torch.no_grad():
            self.layer.weight.zero_()
        self.learner = {"layer": self.layer}
        self.dies_at, self.enough, self.last, self.seen = dies_at, enough, last, seen if seen is not None else []
        self.total = 0

    @property
    def last_step(self):
        return self.last or self.steps

    @property
    def is_over(self):
        return self.enough is not None and self.total >= self.enough

    def saved_values(self):
        return {"total": self.total}

    def restore_values(self, saved):
        self.total = saved["total"]

    def begin(self, done):
        self.seen.append(("begin", done))

    def step(self, number):
        if number == self.dies_at:
            raise RuntimeError("the power is off")
        self.total += number
        with torch.no_grad():
            self.layer.weight += number
        self.run.append("evaluations.jsonl", [{"step": number}])
        return StepReport({"total": self.total}, {"seconds": 1.0}, "fine")

    def validate(self, number):
        return {"judged": number} if number == 3 else None

    def before_checkpoint(self):
        saved = self.run.checkpoints.latest()
        assert saved is None or saved[1]["total"] < self.total  # what belongs to a checkpoint is written first
        self.seen.append(("checkpoint", self.total))

    def finish(self):
        return {"total": self.total, "weight": self.layer.weight.item()}

    def report(self, result):
        self.seen.append(("report", result["total"]))
        return {"total": float(result["total"])}


def run_job(folder: Path, identity: str = "a", covers=lambda result: True, force: bool = False, **how):
    settings = {"seed": 0, "checkpoint_every": 4, "keep_checkpoints": 9, "force": force}
    cfg = OmegaConf.create(
        {"task": "count", "name": "r", "out": str(folder), "device": "cpu", "tracker": {"name": "none"}, **settings}
    )
    job = TrainingJob(cfg, RunSpec.of(cfg), {"id": identity}, {"batch": 7}, ("sum", "model"),
                      lambda run: Counting(run, **how), covers)  # fmt: skip
    return train(job)


def test_a_run_writes_its_journal_checkpoints_and_result(tmp_path):
    seen: list[tuple[str, int]] = []
    result = run_job(tmp_path, seen=seen)
    assert (result["total"], result["weight"], result["identity"], result["name"]) == (21, 21.0, {"id": "a"}, "r")
    assert result["format"] == 2 and result["time_sec"] >= 0
    assert json.loads((tmp_path / "result.json").read_text()) == result
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["total"] for row in rows] == [1, 3, 6, 10, 15, 21] and rows[2]["judged"] == 3
    assert [row["seconds"] for row in read_rows(tmp_path / "timings.jsonl")] == [1.0] * 6
    # every fourth step, after an evaluation, and after the last step
    saved = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert saved == [f"step-{number:08d}.pt" for number in (3, 4, 6)]
    assert seen == [("begin", 0), ("checkpoint", 6), ("checkpoint", 10), ("checkpoint", 21), ("report", 21)]


@pytest.mark.parametrize("dies_at", [1, 4, 6])
def test_a_killed_run_ends_like_an_undisturbed_one(tmp_path, dies_at):
    whole = run_job(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power"):
        run_job(tmp_path / "killed", dies_at=dies_at)
    seen: list[tuple[str, int]] = []
    resumed = run_job(tmp_path / "killed", seen=seen)
    assert seen[0] == ("begin", {1: 0, 4: 3, 6: 4}[dies_at])
    assert {key: resumed[key] for key in ("total", "weight")} == {key: whole[key] for key in ("total", "weight")}
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_a_finished_run_is_not_trained_again_but_with_force(tmp_path, capsys):
    first = run_job(tmp_path)
    assert run_job(tmp_path, dies_at=1) == first
    assert f"sum: {tmp_path / 'model'}  (finished before; force=true trains it anew)" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="power"):
        run_job(tmp_path, dies_at=1, force=True)
    assert (tmp_path / "replaced/1/result.json").is_file()


def test_a_run_stops_early_and_goes_on_if_more_is_wanted(tmp_path):
    assert run_job(tmp_path / "early", enough=6)["total"] == 6
    assert run_job(tmp_path, last=3)["total"] == 6
    assert run_job(tmp_path, covers=lambda result: result["total"] > 6)["total"] == 21
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_values_that_a_checkpoint_lacks_are_an_error_of_one_line(tmp_path):
    with pytest.raises(RuntimeError, match="power"):
        run_job(tmp_path, dies_at=4)

    class Other(Counting):
        def restore_values(self, saved):
            self.total = saved["sum"]

    settings = {"seed": 0, "checkpoint_every": 4, "keep_checkpoints": 9, "force": False}
    cfg = OmegaConf.create({"task": "count", "name": "r", "out": str(tmp_path), "device": "cpu",
                            "tracker": {"name": "none"}, **settings})  # fmt: skip
    with pytest.raises(UserError, match=r"state of the run is from another version of the program \('sum'\)"):
        train(TrainingJob(cfg, RunSpec.of(cfg), {"id": "a"}, {}, ("sum", "model"), Other))


def test_memory_that_runs_out_names_the_settings(tmp_path):
    class Big(Counting):
        def step(self, number):
            raise torch.OutOfMemoryError("out of memory")

    cfg = OmegaConf.create({"task": "count", "name": "r", "out": str(tmp_path), "device": "cpu", "seed": 0,
                            "checkpoint_every": 4, "keep_checkpoints": 9, "force": False,
                            "tracker": {"name": "none"}})  # fmt: skip
    with pytest.raises(UserError, match=r"batch=7: cpu .* has no memory left for it .*lower batch"):
        train(TrainingJob(cfg, RunSpec.of(cfg), {}, {"batch": 7}, ("sum", "model"), Big))
