"""Tracking: none or W&B, read back from the file of an offline run; a failure warns once and stops nothing."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from PIL import Image

from latentwire.harness.errors import UserError
from latentwire.harness.tracking import NoTracker, TrackerSpec, WandbTracker, make_tracker
from tests.helpers.tracking import logged

pytestmark = pytest.mark.usefixtures("logged_out")

RESULT = {
    "name": "anchor_eps0.05@scaled117.0",
    "config_hash": "0123456789abcdef",
    "family": "anchor_offset",
    "source": "scaled",
    "status": "ok",
    "f1": 0.5,
    "f1_interval": [0.4, 0.625],
    "scores": {"f1": {"mean": 0.5, "interval": [0.4, 0.625]}, "wer": {"mean": 0.25, "interval": [0.2, 0.3]}},
    "num_samples": 100,
    "config": {"seed": 3, "embed_transform": {"name": "anchor_offset", "dials": {"eps": 0.05}}},
}
SUMMARY = {"sweep": "embed35", "total_experiments": 35, "failed": 1, "results": [RESULT]}
CROSS_FIT = ["cross_fit", "cross_fit_low", "cross_fit_high"]
COLUMNS = ["group", "rank", "name", "score", "em", "score_low", "score_high", *CROSS_FIT]
ROWS = [
    ["text", 1, "anchor_eps0.05", 0.5, 0.1, 0.375, 0.625, 0.4375, 0.3125, 0.5625],
    ["text", 2, "baseline", 0.25, 0.2, 0.125, 0.5, None, None, None],
    ["noisy", 1, "baseline@noisy", 0.125, 0.0, 0.0, 0.25, None, None, None],
]
MATRIX = ["source", "f1", "recovered"], [["text", 0.5, None], ["noisy", 0.125, 0.25]]
EXAMPLES = ["name", "id", "prediction"], [["baseline", "q1", "Anna"], ["anchor_eps0.05", "q1", ""]]
TABLES = {"ranking": (COLUMNS, ROWS), "matrix": MATRIX, "examples": EXAMPLES}


def tracker(folder: Path) -> WandbTracker:
    return WandbTracker(folder, group="embed35", project="latentwire", entity=None, tags=["mine"])


def read_table(run: SimpleNamespace, name: str) -> dict[str, Any]:
    """Return the columns and rows of a table that a run logged."""
    table = json.loads((run.files / run.summary[f"{name}/path"]).read_text())
    return {key: table[key] for key in ("columns", "data")}


@pytest.mark.slow
def test_offline_the_runs_hold_config_scores_and_table(tmp_path, capsys):
    figures = [tmp_path / f"{name}.png" for name in ("ranking_text", "ranking_scaled117.0")]
    for number, figure in enumerate(figures):
        Image.new("RGB", (30 + number, 20)).save(figure)
    reporter = tracker(tmp_path)
    reporter.log_result(RESULT)
    reporter.log_summary(SUMMARY, TABLES, figures, "1 - WER")
    assert not reporter.broken
    assert "warning" not in capsys.readouterr().err
    runs = logged(tmp_path)
    assert set(runs) == {RESULT["name"], "embed35 summary"}

    one = runs[RESULT["name"]]
    assert (one.run.project, one.run.run_group, one.run.job_type) == ("latentwire", "embed35", "anchor_offset")
    assert list(one.run.tags) == ["mine", "anchor_offset", "scaled"]
    assert {key: one.config[key] for key in RESULT["config"]} == RESULT["config"]
    scores = {key: value for key, value in one.summary.items() if not key.startswith("_")}
    assert scores == {
        "f1": 0.5, "f1_interval": [0.4, 0.625], "wer": 0.25, "wer_interval": [0.2, 0.3], "num_samples": 100,
        "status": "ok", "error": "",
    }  # fmt: skip

    all_of_them = runs["embed35 summary"]
    assert (all_of_them.run.run_group, all_of_them.run.job_type) == ("embed35", "summary")
    assert list(all_of_them.run.tags) == ["mine"]
    assert all_of_them.summary["total_experiments"] == 35
    assert all_of_them.summary["failed"] == 1
    assert all_of_them.summary["ranking/nrows"] == 3
    for name, (columns, rows) in TABLES.items():
        assert read_table(all_of_them, name) == {"columns": columns, "data": rows}
    # The figures are logged unchanged.
    for figure in figures:
        assert (all_of_them.files / all_of_them.summary[f"figures/{figure.stem}/path"]).read_bytes() == (
            figure.read_bytes()
        )
    # Each source has a chart and a table with the intervals; the chosen row has its cross-fit score.
    assert read_table(all_of_them, "bars/text_table") == {
        "columns": ["name", "1 - WER", "low", "high"],
        "data": [["anchor_eps0.05", 0.4375, 0.3125, 0.5625], ["baseline", 0.25, 0.125, 0.5]],
    }
    assert read_table(all_of_them, "bars/noisy_table")["data"] == [["baseline@noisy", 0.125, 0.0, 0.25]]
    charts = all_of_them.charts
    assert set(charts) == {"bars/text", "bars/noisy"}
    chart = charts["bars/text"]["panel_config"]
    assert chart["panelDefId"] == "wandb/bar/v0"
    assert chart["fieldSettings"] == {"label": "name", "value": "1 - WER"}
    assert chart["stringSettings"]["title"] == "1 - WER, text"


def test_equal_results_share_a_run(tmp_path, monkeypatch):
    """Another name or another configuration gets its own run."""
    calls = []
    monkeypatch.setattr(wandb, "init", lambda **options: calls.append(options) or contextlib.nullcontext(StubRun()))
    for result in (RESULT, RESULT, {**RESULT, "config_hash": "fedcba9876543210"}, {**RESULT, "name": "baseline"}):
        tracker(tmp_path).log_result(result)
    ids = [call["id"] for call in calls]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
    assert {call["resume"] for call in calls} == {"allow"}


def test_run_ids_depend_on_the_absolute_folder(tmp_path, monkeypatch, init):
    """Relative and absolute paths of a folder give the same run."""
    for here in ("one", "two"):
        (tmp_path / here).mkdir()
        monkeypatch.chdir(tmp_path / here)
        for folder in (Path("outputs/embed35"), Path("outputs/embed35").resolve()):
            tracker(folder).log_summary(SUMMARY, TABLES, [], "F1")
            tracker(folder).log_result(RESULT)
    ids = [call["id"] for call in init.calls]
    assert ids[:2] == ids[2:4] and ids[4:6] == ids[6:]  # relative or absolute
    assert len({*ids}) == 4  # two runs in each of two folders


class StubRun:
    """A substitute for a W&B run."""

    summary: dict[str, Any] = {}  # noqa: RUF012


def test_no_tracker_does_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wandb, "init", None)
    reporter = make_tracker(TrackerSpec("none"), tmp_path, "g")
    assert isinstance(reporter, NoTracker)
    reporter.log_result(RESULT)
    reporter.log_summary(SUMMARY, TABLES, [], "F1")
    assert capsys.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_is_chosen_by_name(tmp_path):
    made = make_tracker(TrackerSpec("wandb", "p", None, ["t"]), tmp_path, "g")
    assert isinstance(made, WandbTracker)
    assert (made.folder, made.group, made.project, made.entity, made.tags) == (tmp_path, "g", "p", None, ["t"])
    with pytest.raises(UserError, match=r"^tracker=mlflow: unknown; use none or wandb$"):
        make_tracker(TrackerSpec("mlflow"), tmp_path, "g")


class Recorder:
    """A substitute for wandb.init that records its calls and fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[dict[str, Any]] = []
        monkeypatch.setattr(wandb, "init", self)

    def __call__(self, **options: Any) -> None:
        self.calls.append(options)
        raise RuntimeError("the server is on fire")


@pytest.fixture
def init(monkeypatch) -> Recorder:
    return Recorder(monkeypatch)


def test_a_failing_tracker_warns_once_and_is_not_used_again(tmp_path, init, capsys):
    reporter = tracker(tmp_path)
    for _ in range(3):
        reporter.log_result(RESULT)
    reporter.log_summary(SUMMARY, TABLES, [], "F1")
    assert len(init.calls) == 1
    said = capsys.readouterr().err
    assert said.count("warning") == 1
    assert "W&B failed" in said
    assert "RuntimeError: the server is on fire" in said


def test_a_folder_that_cannot_be_made_warns_too(tmp_path, init, capsys):
    (tmp_path / "file").write_text("in the way")
    tracker(tmp_path / "file" / "out").log_result(RESULT)
    assert init.calls == []
    assert "warning: W&B failed" in capsys.readouterr().err


def test_one_process_reports(tmp_path, init, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    tracker(tmp_path).log_result(RESULT)
    assert init.calls == []


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "k" * 40}, "online"),
        ({"WANDB_API_KEY": "k" * 40, "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
    ],
)
def test_without_a_login_the_default_mode_is_offline(tmp_path, init, monkeypatch, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    tracker(tmp_path / "new").log_result(RESULT)
    assert init.calls[0]["mode"] == expected
    assert init.calls[0]["dir"] == str(tmp_path / "new")
    assert init.calls[0]["entity"] is None
    assert (tmp_path / "new").is_dir()


def test_a_login_in_the_netrc_file_counts(tmp_path, init):
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {'k' * 40}\n")
    (tmp_path / "netrc").chmod(0o600)
    tracker(tmp_path).log_result(RESULT)
    assert init.calls[0]["mode"] == "online"
