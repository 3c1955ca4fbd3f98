"""A training run in W&B: its numbers, distributions and tables, read back from the file of an offline run."""

from __future__ import annotations

import json

import pytest
import wandb

from latentwire.harness.errors import UserError
from latentwire.harness.tracking import TrainingRun, start_run
from tests.helpers.tracking import logged, records

pytestmark = pytest.mark.usefixtures("logged_out")

TRACKER = {"name": "wandb", "project": "kat", "entity": None, "tags": ["mine"]}


@pytest.mark.slow
def test_offline_the_run_holds_what_the_loop_logged(tmp_path, capsys):
    run = start_run(TRACKER, tmp_path, "grpo", "density_seed0", {"steps": 2})
    run.log(1, {"reward": 0.25})
    run.log(2, {"reward": 0.5})
    run.histogram(2, "rewards", [0.0, 0.0, 1.0])
    run.table(2, "completions", ["prompt", "completion"], [["who", "me"], ["what", "it"]])
    run.close({"finished": True})
    assert "warning" not in capsys.readouterr().err
    (one,) = logged(tmp_path).values()
    assert (one.run.display_name, one.run.project, one.run.run_group) == ("density_seed0", "kat", "grpo")
    assert list(one.run.tags) == ["mine"]
    assert one.config["steps"] == 2
    assert one.summary["reward"] == 0.5
    assert one.summary["step"] == 2
    assert one.summary["finished"] is True
    assert (
        sum(one.summary["rewards/values"] if "rewards/values" in one.summary else one.summary["rewards"]["values"]) == 3
    )
    table = json.loads((one.files / one.summary["completions/path"]).read_text())
    assert table == {"columns": ["prompt", "completion"], "data": [["who", "me"], ["what", "it"]]}
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    rows = [
        {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        for record in records(file)
        if record.HasField("history")
    ]
    assert [(row["step"], row["reward"]) for row in rows if "reward" in row] == [("1", "0.25"), ("2", "0.5")]


def test_a_resumed_run_is_the_same_run(tmp_path, monkeypatch):
    calls = []

    class Stub:
        def define_metric(self, *names, **options):
            calls[-1]["axis"] = options["step_metric"]

    monkeypatch.setattr(wandb, "init", lambda **options: calls.append(options) or Stub())
    for name in ("a", "a", "b"):
        start_run(TRACKER, tmp_path, "grpo", name, {})
    assert calls[0]["id"] == calls[1]["id"] != calls[2]["id"]
    assert calls[0]["axis"] == "step"


def test_a_failure_warns_once_and_the_loop_continues(tmp_path, monkeypatch, capsys):
    def fail(**options):
        raise RuntimeError("the server is on fire")

    monkeypatch.setattr(wandb, "init", fail)
    run = start_run(TRACKER, tmp_path, "grpo", "a", {})
    run.log(1, {"reward": 1.0})
    run.histogram(1, "rewards", [1.0])
    run.table(1, "t", ["a"], [[1]])
    run.close({})
    assert capsys.readouterr().err.count("warning: W&B failed") == 1


@pytest.mark.parametrize("broken", ["Histogram", "Table"])
def test_a_failed_chart_warns_and_the_loop_continues(tmp_path, monkeypatch, capsys, broken):
    class Stub:
        def define_metric(self, *names, **options):
            pass

        def log(self, row):
            pass

    def fail(*values, **options):
        raise ValueError("range parameter must be finite")

    monkeypatch.setattr(wandb, "init", lambda **options: Stub())
    monkeypatch.setattr(wandb, broken, fail)
    run = start_run(TRACKER, tmp_path, "grpo", "a", {})
    run.histogram(1, "rewards", [float("inf")])
    run.table(1, "t", ["a"], [[1]])
    assert capsys.readouterr().err.count("warning: W&B failed") == 1


def test_other_processes_do_not_report(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(wandb, "init", lambda **options: calls.append(options))
    start_run(TRACKER, tmp_path, "grpo", "a", {}).log(1, {"reward": 1.0})
    assert calls == []


def test_no_tracker_and_an_unknown_one(tmp_path):
    run = start_run({"name": "none"}, tmp_path, "grpo", "a", {})
    assert type(run) is TrainingRun
    run.log(1, {})
    run.close({})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="tracker=mlflow: unknown"):
        start_run({"name": "mlflow"}, tmp_path, "grpo", "a", {})
    with pytest.raises(UserError, match=r"tracker.tags=mine: expected a list of texts"):
        start_run({**TRACKER, "tags": "mine"}, tmp_path, "grpo", "a", {})
