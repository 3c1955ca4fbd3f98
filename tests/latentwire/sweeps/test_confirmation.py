"""The command that confirms a winner, its results, and scores after the decisions of a budget."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from latentwire.analysis.confirmation import confirmations
from latentwire.analysis.controls import AnalysisSettings
from latentwire.records import F1, read_summary
from latentwire.reports.text import render
from latentwire.sweeps.task import summarize
from tests.helpers.results import result_of, right, summary_with

SETTINGS = AnalysisSettings(min_clean_score=0.1, target_difference=0.05)
COMMAND = "python run.py -m sweep=embed35 embed_source=scaled factor=117 samples=60 part=select out=x force=true"
EMPTY = {"groups": [], "metric": F1}


def save(folder: Path, values: dict[str, np.ndarray], part: str, first: int = 0, **more: object) -> dict:
    """Write the predictions and the summary of a sweep; the examples are numbered from `first`, two a passage."""
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    for name, scores in values.items():
        family = "baseline" if name == "base" else name
        results.append(result_of(family, name, scores, "scaled117.0"))
        rows = [
            {"id": f"q{i}", "question": "?", "references": ["a"], "prediction": "a", "f1": score, "em": score,
             "scores": {"f1": score, "em": score}, "passage": f"p{i // 2}"}
            for i, score in enumerate(scores.tolist(), first)
        ]  # fmt: skip
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.predictions.jsonl").write_text(text, encoding="utf-8")
    summary = summary_with(EMPTY, results) | {"part": part, "command": COMMAND} | more
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return summary


def analysed(folder: Path) -> dict:
    return summarize(read_summary(folder / "summary.json"), folder, SETTINGS)


def group_of(folder: Path) -> dict:
    return analysed(folder)["analysis"]["groups"][0]


SELECTING = {"base": right(0.1, 60), "anchor": right(0.7, 60), "rms": right(0.5, 60)}


def test_the_command_confirms_the_winner_on_the_other_half(tmp_path):
    save(tmp_path, SELECTING, "select")
    words = shlex.split(group_of(tmp_path)["confirm_command"])
    assert words[:3] == ["python", "run.py", "-m"]
    settings = [word for word in words if "=" in word]
    assert settings == [
        "sweep=embed35", "embed_source=scaled", "factor=117", "samples=60", "part=confirm", "only=anchor",
        f"out={tmp_path / 'confirm'}",
    ]  # fmt: skip
    assert "Confirm it first: python run.py" in render(analysed(tmp_path))


def test_a_sweep_of_all_passages_is_first_split(tmp_path):
    save(tmp_path, SELECTING, "all", command="python run.py -m sweep=smoke only='rms*'")
    words = shlex.split(group_of(tmp_path)["confirm_command"])
    assert words[3:] == ["sweep=smoke", "only=rms*", "part=select", f"out={tmp_path / 'select'}"]
    assert "choose it on half of the passages first: python run.py" in render(analysed(tmp_path))


def test_no_command_without_a_winner_or_on_the_second_half(tmp_path):
    save(tmp_path / "none", {"base": right(0.5, 60), "anchor": right(0.5, 60)}, "select")
    save(tmp_path / "second", SELECTING, "confirm")
    assert group_of(tmp_path / "none")["confirm_command"] is None
    assert group_of(tmp_path / "second")["confirm_command"] is None


@pytest.mark.parametrize(("share", "word"), [(0.7, "Confirmed"), (0.12, "NOT confirmed")])
def test_the_result_on_the_other_half_is_shown(tmp_path, share, word):
    save(tmp_path, SELECTING, "select")
    save(tmp_path / "confirm", {"base": right(0.1, 40), "anchor": right(share, 40)}, "confirm", first=100)
    summary = analysed(tmp_path)
    found = summary["analysis"]["groups"][0]["confirmation"]
    assert found["confirmed"] == (word == "Confirmed")
    assert (found["experiment"], found["num_samples"], found["passages"]) == ("anchor", 40, 20)
    assert found["score"] == pytest.approx(right(share, 40).mean())
    assert f"{word} on 40 other examples about 20 other passages: anchor" in render(summary)
    assert "Confirm it first" not in render(summary)


def test_a_winner_that_leaks_is_not_confirmed(tmp_path):
    save(tmp_path, SELECTING, "select")
    confirm = tmp_path / "confirm"
    save(confirm, {"base": right(0.1, 40), "anchor": right(0.7, 40)}, "confirm", first=100)
    analysis = analysed(tmp_path)["analysis"]["groups"]
    other = analysed(confirm)["analysis"]["groups"]
    (row,) = [row for row in other[0]["ranking"] if row["name"] == "anchor"]
    row["warnings"] = [{"kind": "leaks", "level": "warning", "message": "m"}]
    (found,) = confirmations(analysis, other).values()
    assert (found["p_value"] < 0.001, found["confirmed"]) == (True, False)


def test_holm_counts_winners_without_a_result(tmp_path):
    save(tmp_path, SELECTING, "select")
    save(tmp_path / "confirm", {"base": right(0.1, 40), "anchor": right(0.3, 40)}, "confirm", first=100)
    own, other = (analysed(folder)["analysis"]["groups"] for folder in (tmp_path, tmp_path / "confirm"))
    missing = [own[0] | {"group": f"s{n}", "winner": f"w{n}"} for n in range(3)]
    (alone,), (among,) = (confirmations(groups, other).values() for groups in (own, [*own, *missing]))
    assert among["p_value"] == pytest.approx(min(1, 4 * alone["p_value"]))


def test_a_winner_of_one_of_two_models_can_be_confirmed(tmp_path):
    """The command evaluates the winner alone, so the other model has no result there."""
    summary = save(tmp_path, {**SELECTING, "other": right(0.1, 60)}, "select")
    for result in summary["results"]:
        if result["name"] == "other":
            result |= {"model_id": "second", "variant": "@model=second", "group": "scaled117.0@model=second"}
    (tmp_path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    save(tmp_path / "confirm", {"base": right(0.1, 40), "anchor": right(0.7, 40)}, "confirm", first=100)
    assert group_of(tmp_path)["confirmation"]["confirmed"]


def test_the_same_passages_confirm_nothing(tmp_path, capsys):
    save(tmp_path, SELECTING, "select")
    save(tmp_path / "confirm", {"base": right(0.1, 40), "anchor": right(0.7, 40)}, "confirm", first=58)
    assert group_of(tmp_path)["confirmation"] is None
    assert "does not confirm this sweep: both have the same passages (1)" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("change", "reason"), [({"part": "all"}, "not made with part=confirm"), ({"shots_seed": 9}, "shots_seed differs")]
)
def test_another_sweep_confirms_nothing(tmp_path, capsys, change, reason):
    save(tmp_path, SELECTING, "select")
    values = {"base": right(0.1, 40), "anchor": right(0.7, 40)}
    save(tmp_path / "confirm", values, **{"part": "confirm", "first": 100, **change})
    assert group_of(tmp_path)["confirmation"] is None
    assert reason in "".join(capsys.readouterr())


def test_survivors_are_scored_after_the_last_decision(tmp_path):
    """The anchor was lucky on the 32 examples that decided; the baseline took part in no decision."""
    lucky = np.concatenate([np.ones(32), right(0.5, 32)])
    kept = {"group": "scaled117.0", "names": ["anchor"], "kept": ["anchor"], "left_out": ["rms"]}
    halving = {"round": 1, "samples": 64, "why": "", "groups": [kept], "decided_on": 32}
    budget = {"wanted": 64, "samples": 64, "first": 32, "halvings": [halving], "minutes": 1.0, "estimate": None,
              "key": "k", "configurations": 3, "seconds_per_example": 0.1, "seconds_spent": 60.0, "time_model": "",
              "stopped": "done", "note": ""}  # fmt: skip
    values = {"base": right(0.25, 64), "anchor": lucky, "rms": right(0.5, 32)}
    save(tmp_path, values, "all", budget=budget)
    rows = {row["name"]: row for row in group_of(tmp_path)["ranking"]}
    assert (rows["anchor"]["score"], rows["anchor"]["num_samples"]) == (0.5, 32)
    assert rows["anchor"]["difference"] == pytest.approx(0.5 - right(0.25, 64)[32:].mean())
    assert (rows["base"]["num_samples"], rows["rms"]["num_samples"]) == (64, 32)
    assert rows["rms"]["difference"] == pytest.approx(0.5 - right(0.25, 64)[:32].mean())


def test_the_automatic_repair_competes_on_the_same_examples(tmp_path):
    """It always goes on. On other examples than the survivors, it could win without having been chosen among them."""
    kept = {"group": "scaled117.0", "names": ["anchor"], "kept": ["anchor"], "left_out": ["rms"]}
    halving = {"round": 1, "samples": 64, "why": "", "groups": [kept], "decided_on": 32}
    budget = {"wanted": 64, "samples": 64, "first": 32, "halvings": [halving], "minutes": 1.0, "estimate": None,
              "key": "k", "configurations": 3, "seconds_per_example": 0.1, "seconds_spent": 60.0, "time_model": "",
              "stopped": "done", "note": ""}  # fmt: skip
    equal = right(0.7, 64)
    values = {"base": right(0.1, 64), "anchor": equal, "auto": equal, "rms": right(0.3, 32)}
    save(tmp_path, values, "all", budget=budget)
    group = group_of(tmp_path)
    rows = {row["name"]: row for row in group["ranking"]}
    assert rows["auto"]["num_samples"] == rows["anchor"]["num_samples"] == 32
    assert group["ranking"][0]["cross_fit"]["among"] == 2
    save(tmp_path, values | {"auto": right(0.7, 32)}, "all", budget=budget)  # no examples after the decision
    assert {row["name"]: row["num_samples"] for row in group_of(tmp_path)["ranking"]}["auto"] == 32
    assert "level with au" in group["verdict"] or "level with an" in group["verdict"]
