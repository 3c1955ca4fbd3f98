"""The command line from end to end on the tiny model: sweeps, resuming, failures, bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from latentwire.evaluation.metrics import f1_score
from latentwire.evaluation.setup import FITTED_ON
from latentwire.harness.results import ResultStore
from tests.helpers.files import read_json
from tests.helpers.programs import command, environment, start
from tests.helpers.results import without_timings

SMALL = ["model=tiny_random", "samples=6", "shots=2", "max_new_tokens=4"]
GRIDS = ["{embed_transform:baseline}", "{embed_transform:rms_matching,target_scale:1.0}"]
PAIR = ["-m", "sweep=smoke", f"sweep.grids=[{','.join(GRIDS)}]"]  # composing eight takes longer than running two


@pytest.mark.float_path
def test_one_configuration_writes_its_result_and_predictions(cli):
    status, _, err = cli(*SMALL, "embed_transform=rms_matching", "target_scale=1")
    assert status == 0
    assert "rms_scale1.0  F1" in err
    result = read_json("outputs/single/rms_scale1.0.json")
    assert result["status"] == "ok"
    assert (result["experiment"], result["family"], result["dials"]) == (
        "rms_scale1.0",
        "rms_matching",
        {"target_scale": 1.0},
    )
    assert result["source"] == "text"
    assert result["num_samples"] == 6
    assert result["config"]["samples"] == 6
    rows = [json.loads(line) for line in Path("outputs/single/rms_scale1.0.predictions.jsonl").read_text().splitlines()]
    assert [set(row) for row in rows] == [
        {"id", "question", "references", "prediction", "f1", "em", "scores", "cut_off", "change", "passage", "tokens",
         "distance"}
    ] * 6  # fmt: skip
    assert all(row["f1"] == f1_score(row["prediction"], row["references"]) for row in rows)
    assert all(row["scores"] == {"f1": row["f1"], "em": row["em"]} for row in rows)
    assert result["f1"] == pytest.approx(np.mean([row["f1"] for row in rows]))
    assert result["em"] == pytest.approx(np.mean([row["em"] for row in rows]))
    assert result["empty_rate"] == pytest.approx(np.mean([not row["prediction"] for row in rows]))
    for score in ("f1", "em", "empty_rate"):
        low, high = result[f"{score}_interval"]
        assert 0 <= low <= result[score] <= high <= 1
    assert result["scores"] == {
        name: {"mean": result[name], "interval": result[f"{name}_interval"]} for name in ("f1", "em")
    }


@pytest.mark.slow
def test_a_sweep_ends_with_its_summary_and_analysis(cli):
    status, out, _ = cli("-m", "sweep=smoke", *SMALL, "embed_source=text,scaled")
    assert status == 0
    summary = read_json("outputs/smoke/summary.json")
    assert (summary["total_experiments"], summary["successful"], summary["failed"]) == (16, 16, 0)
    assert len(summary["results"]) == len(summary["sorted_by_f1"]) == 16
    f1s = [entry["f1"] for entry in summary["sorted_by_f1"]]
    assert f1s == sorted(f1s, reverse=True)
    assert {result["source"] for result in summary["results"]} == {"text", "scaled"}
    assert [group["group"] for group in summary["analysis"]["groups"]] == ["text", "scaled117.0"]
    anchor = next(r for r in summary["results"] if r["name"] == "anchor_eps0.05")
    assert anchor["identity"]
    assert "identity: changed nothing on this source" in out
    assert "Verdict:" in out
    # task=analyze runs nothing and prints the same.
    status, again, _ = cli("task=analyze", "summary=outputs/smoke/summary.json")
    assert status == 0
    assert again == out
    assert cli("task=analyze", "sweep=smoke")[:2] == (0, out)


@pytest.mark.slow
def test_the_sweep_without_a_preset_runs_as_written(cli):
    status, _, _ = cli("-m", *SMALL, "embed_transform=anchor_offset", "eps=0.01,0.05")
    assert status == 0
    assert read_json("outputs/single/summary.json")["total_experiments"] == 2
    assert read_json("outputs/single/anchor_eps0.01.json")["dials"] == {"eps": 0.01}


@pytest.mark.slow
@pytest.mark.float_path
def test_a_fitted_transform_reports_its_fit(cli):
    """Its result records the number and kind of embeddings it was fitted on, and its diagnosis."""
    command = ["-m", *SMALL, "embed_source=shifted", "embed_transform=baseline,auto,procrustes_supervised,chain"]
    status, out, err = cli(*command)
    assert status == 0
    results = {result["family"]: result for result in read_json("outputs/single/summary.json")["results"]}
    auto, supervised = results["auto"]["fit"], results["procrustes_supervised"]["fit"]
    assert results["baseline"]["fit"] is results["chain"]["fit"] is None
    assert 1000 < auto["embeddings"] <= FITTED_ON
    assert (auto["sees"], auto["supervised"]) == ("unlabelled embeddings", False)
    assert (supervised["sees"], supervised["supervised"]) == ("pairs of embedding and true token", True)
    assert auto["diagnosis"]["chain"]
    assert f"steps: {', '.join(auto['diagnosis']['chain'])}" in err
    rows = {row["family"]: row for group in read_json("outputs/single/summary.json")["analysis"]["groups"]
            for row in group["ranking"]}  # fmt: skip
    assert rows["procrustes_supervised"]["supervised"]
    assert not rows["auto"]["supervised"]
    if "p_holm" in rows["procrustes_supervised"]:
        assert "(saw the true tokens: a control)" in out


def test_without_other_passages_there_is_nothing_to_fit_on(cli):
    row = {"id": "q", "context": "Number one lives here.", "question": "Who?", "answers": "Number one"}
    Path("mine.jsonl").write_text(json.dumps(row))
    tiny = ["data=file", "path=mine.jsonl", "model=tiny_random", "samples=1", "shots=0", "max_new_tokens=2"]
    assert cli(*tiny)[0] == 0
    status, _, err = cli(*tiny, "embed_transform=auto")
    assert status == 1
    assert "embed_transform=auto: is fitted on passages outside the evaluation, and the data have none" in err


@pytest.mark.slow
def test_the_35_are_listed_by_name(cli):
    status, out, _ = cli("task=list", "sweep=embed35")
    lines = out.splitlines()
    assert status == 0
    assert len(lines) == 35
    assert lines[0].split() == ["baseline", "embed_transform=baseline"]
    assert lines[17].split() == ["anchor_eps0.05", "embed_transform=anchor_offset", "eps=0.05"]


@pytest.mark.slow
def test_finished_configurations_are_not_run_again_unless_forced(cli):
    command = [*PAIR, *SMALL]
    cli(*command)
    before = read_json("outputs/smoke/summary.json")
    written = Path("outputs/smoke/baseline.json").stat().st_mtime_ns
    _, _, err = cli(*command)
    assert err.count("(finished before)") == 5  # with the empty context, random tokens and the scrambled control
    assert Path("outputs/smoke/baseline.json").stat().st_mtime_ns == written
    assert read_json("outputs/smoke/summary.json") == before
    _, _, err = cli(*command, "force=true")
    assert "finished before" not in err
    assert Path("outputs/smoke/baseline.json").stat().st_mtime_ns > written
    assert without_timings(read_json("outputs/smoke/summary.json")) == without_timings(before)


@pytest.mark.slow
def test_rerunning_part_of_a_sweep_keeps_the_full_summary(cli):
    """The earlier summary moves to the folder replaced."""
    cli(*PAIR, *SMALL)
    whole = read_json("outputs/smoke/summary.json")
    _, _, err = cli(*PAIR, "only=baseline", *SMALL)
    assert "it is kept as" in err
    (kept,) = Path("outputs/smoke/replaced").glob("summary.*.json")
    assert read_json(kept) == whole
    assert read_json("outputs/smoke/summary.json")["total_experiments"] == 1


@pytest.mark.slow
def test_the_analysis_refuses_predictions_of_another_run(cli):
    cli(*PAIR, *SMALL)
    path = Path("outputs/smoke/baseline.predictions.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["scores"]["f1"] = 1 - rows[0]["scores"]["f1"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, out, err = cli("task=analyze", "summary=outputs/smoke/summary.json")
    assert status == 1
    assert "baseline.predictions.jsonl does not match the summary" in err
    assert out == ""


@pytest.mark.slow
def test_a_result_without_a_field_counts_as_damaged(cli):
    command = [*PAIR, *SMALL]
    cli(*command)
    result = read_json("outputs/smoke/baseline.json")
    del result["f1_interval"]
    Path("outputs/smoke/baseline.json").write_text(json.dumps(result))
    status, _, err = cli(*command)
    assert status == 1
    assert "baseline.json lacks f1_interval" in err
    assert read_json("outputs/smoke/baseline.json") == result


def test_a_mistake_gets_its_message_and_nothing_else(cli):
    _, out, err = cli(*SMALL, "samples=100000")
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: samples=100000")


@pytest.mark.slow
@pytest.mark.parametrize("change", ["seed=1", "samples=5", "shots=1", "max_new_tokens=3", "dtype=bfloat16"])
def test_settings_that_affect_a_result_are_in_its_hash(cli, change):
    cli(*SMALL)
    first = read_json("outputs/single/baseline.json")
    _, _, err = cli(*SMALL, change)
    assert "finished before" not in err
    assert read_json("outputs/single/baseline.json")["config_hash"] != first["config_hash"]
    # The first result was kept, and is used again for its settings.
    _, _, err = cli(*SMALL)
    assert "finished before" in err
    assert read_json("outputs/single/baseline.json") == first


@pytest.mark.float_path
def test_the_same_command_gives_the_same_result(cli):
    command = [*SMALL, "embed_source=noisy", "embed_transform=random_interpolation"]
    cli(*command)
    first = read_json("outputs/single/random_k3@noisy0.0dB.json")
    rows = Path("outputs/single/random_k3@noisy0.0dB.predictions.jsonl").read_bytes()
    cli(*command, "force=true")
    second = read_json("outputs/single/random_k3@noisy0.0dB.json")
    assert Path("outputs/single/random_k3@noisy0.0dB.predictions.jsonl").read_bytes() == rows
    for result in (first, second):
        for key in ("time_sec", "job_sec", "timing", "config"):
            del result[key]
    assert first == second


@pytest.mark.slow
def test_a_sweep_runs_controls_and_does_not_count_them(cli):
    status, _, _ = cli("-m", "sweep=smoke", *SMALL, "embed_source=scaled", "seed=0,1")
    assert status == 0
    summary = read_json("outputs/smoke/summary.json")
    assert (summary["total_experiments"], summary["successful"]) == (16, 16)
    unscrambled = [control for control in summary["controls"] if control["control"] != "scrambled"]
    assert len(summary["controls"]) - len(unscrambled) == 2  # one for each seed
    assert [(c["name"], c["control"], c["variant"]) for c in unscrambled] == [
        ("control_clean@seed0", "clean", "@seed0"),
        ("control_empty@seed0", "empty", "@seed0"),
        ("control_clean@seed1", "clean", "@seed1"),
        ("control_empty@seed1", "empty", "@seed1"),
    ]
    assert {result["control"] for result in summary["results"]} == {None}
    assert not [row for row in summary["sorted_by_f1"] if row["name"].startswith("control")]
    for seed, group in zip((0, 1), summary["analysis"]["groups"], strict=True):
        assert group["controls"]["clean"]["name"] == f"control_clean@seed{seed}"
        lower = [(row["name"], row["control"]) for row in group["controls"]["lower"]]
        assert lower == [
            (f"control_empty@seed{seed}", "empty"),
            (f"random_k3@scaled117.0@seed{seed}", "random_interpolation"),
        ]
    # The clean control is the baseline on text, the empty context the same questions without their passages.
    assert cli(*SMALL, "out=alone")[0] == 0
    assert Path("alone/baseline.predictions.jsonl").read_bytes() == (
        Path("outputs/smoke/control_clean@seed0.predictions.jsonl").read_bytes()
    )
    assert cli(*SMALL, "control=empty", "out=alone")[0] == 0
    assert Path("alone/control_empty.predictions.jsonl").read_bytes() == (
        Path("outputs/smoke/control_empty@seed0.predictions.jsonl").read_bytes()
    )
    clean, empty = (read_json(f"alone/{name}.json") for name in ("baseline", "control_empty"))
    assert clean["config_hash"] != empty["config_hash"]
    assert empty["timing"]["positions"] < clean["timing"]["positions"] / 2


@pytest.mark.slow
def test_the_baseline_on_text_is_its_own_clean_control(cli):
    cli(*PAIR, *SMALL)
    summary = read_json("outputs/smoke/summary.json")
    names = ["control_empty", "control_random", "control_scrambled_rms_scale1.0"]
    assert [control["name"] for control in summary["controls"]] == names
    assert summary["analysis"]["groups"][0]["controls"]["clean"]["name"] == "baseline"
    assert not Path("outputs/smoke/control_clean.json").exists()


@pytest.mark.slow
def test_an_added_baseline_is_reused_and_not_counted(cli):
    """A later sweep that asks for the baseline counts it, although its file was written as a control."""
    own = [*SMALL, "embed_source=scaled", "min_clean_score=0"]
    assert cli("-m", *own, "embed_transform=rms_matching", "target_scale=0.5,1")[0] == 0
    summary = read_json("outputs/single/summary.json")
    assert summary["total_experiments"] == 2
    kinds = {control["name"]: control["control"] for control in summary["controls"]}
    assert kinds["baseline@scaled117.0"] == "baseline"
    assert set(kinds) >= {"control_clean", "control_empty", "control_random"}
    _, _, err = cli("-m", *own, "embed_transform=baseline,rms_matching")
    (line,) = [line for line in err.splitlines() if "] baseline@scaled117.0  F1" in line]
    assert line.endswith("(finished before)")
    later = read_json("outputs/single/summary.json")
    assert [result["control"] for result in later["results"]] == [None, None]
    assert "baseline@scaled117.0" not in {control["name"] for control in later["controls"]}
    # The other way round, a baseline of an earlier sweep serves as a control.
    assert cli("-m", *own, "embed_transform=rms_matching", "target_scale=0.5,1")[0] == 0
    again = {control["name"]: control["control"] for control in read_json("outputs/single/summary.json")["controls"]}
    assert again == kinds


@pytest.mark.slow
def test_a_confirmation_has_the_folder_and_shots_of_its_choice(cli):
    """The confirmation of a sweep is at FOLDER/confirm; no example of one half is in the other."""
    sweep = [*PAIR, "model=tiny_random", "samples=6", "shots=2", "max_new_tokens=2", "min_clean_score=0"]
    assert cli(*sweep, "part=select", "shots_seed=4")[0] == 0
    assert cli(*sweep, "part=confirm", "shots_seed=4", "samples=8")[0] == 0
    folders = [Path("outputs/smoke/select"), Path("outputs/smoke/select/confirm")]
    summaries = [read_json(folder / "summary.json") for folder in folders]
    drawn = [[summary[name] for name in ("part", "samples", "seed", "shots_seed")] for summary in summaries]
    assert drawn == [["select", 6, 0, 4], ["confirm", 8, 0, 4]]
    rows = [
        [json.loads(line) for line in (folder / "baseline.predictions.jsonl").read_text().splitlines()]
        for folder in folders
    ]
    chosen, confirming = ({row["passage"] for row in part} for part in rows)
    assert not chosen & confirming
    assert [len(part) for part in rows] == [6, 8]
    assert not (folders[0] / "replaced").exists()
    status, _, err = cli("-m", *SMALL, "part=select,confirm")
    assert (status, "run one after the other" in err) == (1, True)
    assert "part=half: use one of all, select, confirm" in cli(*SMALL, "part=half")[2]


@pytest.mark.slow
def test_repeats_run_a_sweep_anew_with_its_controls(cli):
    small = [*SMALL, "embed_source=rotated", "embed_transform=rms_matching", "min_clean_score=0"]
    status, _, err = cli("-m", *small, "repeats=2")
    assert status == 0, err
    summary = read_json("outputs/single/summary.json")
    found = [(result["name"], result["group"], result["draw"]) for result in summary["results"]]
    assert found == [("rms_scale1.0@rotated", "rotated", 0), ("rms_scale1.0@rotated@draw1", "rotated@draw1", 1)]
    controls = {
        (control["name"], control["draw"]) for control in summary["controls"] if control["control"] != "scrambled"
    }
    names = ("baseline@rotated", "control_clean", "control_empty", "control_random")
    assert controls == {(name, 0) for name in names} | {(f"{name}@draw1", 1) for name in names}
    rows = [
        [json.loads(line) for line in Path(f"outputs/single/{name}.predictions.jsonl").read_text().splitlines()]
        for name in ("rms_scale1.0@rotated", "rms_scale1.0@rotated@draw1")
    ]
    assert [row["id"] for row in rows[0]] == [row["id"] for row in rows[1]]
    assert [row["prediction"] for row in rows[0]] != [row["prediction"] for row in rows[1]]
    # The first draw is the sweep without repeats.
    _, _, err = cli("-m", *small)
    assert (
        err.count("(finished before)") >= 5 and not Path("outputs/single/replaced/rms_scale1.0@rotated.json").exists()
    )
    assert "repeats=2: repeats a sweep; add -m" in cli(*small, "repeats=2")[2]
    out = cli("-m", *small, "repeats=2", "task=list")[1]
    assert [line.split()[0] for line in out.splitlines() if line][-2:] == [name for name, _, _ in found]


@pytest.mark.slow
def test_a_sweep_of_controls_alone_has_a_summary(cli):
    assert cli("-m", *SMALL, "control=clean,empty")[0] == 0
    summary = read_json("outputs/single/summary.json")
    assert (summary["total_experiments"], len(summary["controls"])) == (0, 2)


@pytest.mark.slow
def test_random_tokens_are_a_control_unless_in_the_sweep(cli):
    """The control gives the same answers as the sweep's own random tokens."""
    arguments = [*SMALL, "embed_source=text,scaled", "min_clean_score=0"]
    assert cli("-m", *arguments, "embed_transform=baseline,rms_matching")[0] == 0
    summary = read_json("outputs/single/summary.json")
    assert [(c["name"], c["control"], c["source"]) for c in summary["controls"] if c["control"] != "scrambled"] == [
        ("control_empty", "empty", "text"), ("control_random", "random", "text"),
    ]  # fmt: skip
    for group in summary["analysis"]["groups"]:
        lower = [(row["name"], row["control"]) for row in group["controls"]["lower"]]
        assert lower == [("control_empty", "empty"), ("control_random", "random_interpolation")]
    # They equal the sweep's own random tokens, on each source.
    assert cli("-m", *arguments, "embed_transform=baseline,random_interpolation", "out=own")[0] == 0
    own = read_json("own/summary.json")
    assert [control["name"] for control in own["controls"]] == ["control_empty"]
    control = Path("outputs/single/control_random.predictions.jsonl")
    rows = [
        [row["prediction"] for row in map(json.loads, path.read_text().splitlines())]
        for path in (control, *(Path(f"own/random_k3{end}.predictions.jsonl") for end in ("", "@scaled117.0")))
    ]
    assert rows[0] == rows[1] == rows[2]


@pytest.mark.slow
def test_job_seconds_include_saving_the_previous_result(cli, monkeypatch):
    real = ResultStore.save

    def slow(self, name, result, predictions):
        time.sleep(0.3 if name == "control_empty" else 0)
        real(self, name, result, predictions)

    monkeypatch.setattr(ResultStore, "save", slow)
    assert cli("-m", *SMALL, "embed_transform=baseline,rms_matching")[0] == 0
    summary = read_json("outputs/single/summary.json")
    results = {result["name"]: result for result in [*summary["results"], *summary["controls"]]}
    assert results["control_random"]["job_sec"] >= 0.3  # this job's time includes saving the previous result
    assert all(result["job_sec"] > result["time_sec"] for result in results.values())


@pytest.mark.slow
def test_analyze_applies_new_thresholds(cli):
    """The thresholds are min_clean_score and target_difference."""
    cli(*PAIR, *SMALL)
    _, out, _ = cli("task=analyze", "sweep=smoke")
    assert "Cannot be answered: the clean baseline scores too low: F1 .000, below min_clean_score=.100" in out
    assert "scores too low" not in cli("task=analyze", "sweep=smoke", "min_clean_score=0")[1]
    assert "min_clean_score=1.5: must be a score" in cli("task=analyze", "sweep=smoke", "min_clean_score=1.5")[2]
    assert "target_difference=0.0: must be" in cli("task=analyze", "sweep=smoke", "target_difference=0")[2]


@pytest.mark.slow
def test_seeds_appear_in_names_and_groups(cli):
    cli("-m", *SMALL, "embed_transform=baseline,anchor_offset", "seed=0,1")
    summary = read_json("outputs/single/summary.json")
    assert [r["name"] for r in summary["results"]] == [
        "baseline@seed0",
        "baseline@seed1",
        "anchor_eps0.05@seed0",
        "anchor_eps0.05@seed1",
    ]
    assert [group["group"] for group in summary["analysis"]["groups"]] == ["text@seed0", "text@seed1"]


@pytest.mark.slow
def test_a_failed_configuration_does_not_stop_the_others(cli):
    """The sweep records the failure, reports it and exits with status 1."""
    status, out, err = cli("-m", *SMALL, "embed_transform=anchor_offset", "eps=-1,0.05")
    assert status == 1
    assert "1 of 2 configurations failed" in err
    assert "eps=-1.0: must be 0" in err
    assert "Traceback" not in err
    assert read_json("outputs/single/anchor_eps0.05.json")["status"] == "ok"
    failed = read_json("outputs/single/anchor_eps-1.0.json")
    assert failed["status"] == "failed"
    assert "f1" not in failed
    summary = read_json("outputs/single/summary.json")
    assert (summary["successful"], summary["failed"]) == (1, 1)
    assert "1 failed" in out


def test_nan_from_a_transform_is_a_failure_without_a_score(cli, monkeypatch):
    from latentwire.transforms.scaling import RMSMatching

    monkeypatch.setattr(RMSMatching, "repair", lambda self, x, generator: x * float("nan"))
    status, _, err = cli(*SMALL, "embed_transform=rms_matching")
    assert status == 1
    assert "gave NaN or infinite values" in err
    assert read_json("outputs/single/rms_scale1.0.json")["status"] == "failed"


@pytest.mark.slow
def test_a_transform_that_changes_the_vocabulary_fails(cli, monkeypatch):
    """All configurations share the token embeddings, so the ones after it fail as well."""
    from latentwire.transforms.tokens import NearestK

    def drift(self, x, generator):
        self.vocabulary.embeddings.data.mul_(1.001)
        return x

    monkeypatch.setattr(NearestK, "repair", drift)
    names = ("baseline", "nearest_k,k:3,alpha:0.5", "rms_matching")
    grids = ",".join(f"{{embed_transform:{name}}}" for name in names)
    status, _, err = cli("-m", *SMALL, f"sweep.grids=[{grids}]")
    assert status == 1 and "2 of 3 configurations failed" in err and "the token embeddings have changed since" in err
    found = [
        read_json(f"outputs/single/{name}.json")["status"] for name in ("baseline", "nearest_k3_a0.5", "rms_scale1.0")
    ]
    assert found == ["ok", "failed", "failed"]


@pytest.mark.slow
def test_a_crash_of_a_configuration_keeps_its_traceback(cli, monkeypatch):
    from latentwire.transforms.scaling import RMSMatching

    def crash(self, x, generator):
        raise RuntimeError("kernel exploded")

    monkeypatch.setattr(RMSMatching, "repair", crash)
    status, _, err = cli(*PAIR, *SMALL)
    assert status == 1
    assert "kernel exploded" in err
    assert "Traceback" not in err
    assert "kernel exploded" in read_json("outputs/smoke/rms_scale1.0.json")["traceback"]
    assert read_json("outputs/smoke/summary.json")["successful"] == 1


BAD = {
    "an unknown transform": (["embed_transform=rmsmatching"], "rmsmatching"),
    "an unknown model": (["model=gpt9"], "error: model=gpt9: unknown; use one of gemma3_270m, llama3_8b"),
    "an unknown setting": (["sampels=10"], "sampels=10: no such setting"),
    "a stray dial": (
        ["embed_transform=rms_matching", "eps=0.1"],
        "eps=0.1: embed_transform=rms_matching has no such dial",
    ),
    "a stray dial of the baseline": (["eps=0.1"], "eps belongs to embed_transform=anchor_offset"),
    "a stray source dial": (["snr_db=3"], "snr_db belongs to embed_source=noisy"),
    "an added setting": (["+eps=0.1"], "settings cannot be added"),
    "a nested unknown setting": (["model.weights=x"], "model.weights=x: no such setting"),
    "samples of the wrong type": (["samples=many"], "samples=many: expected a whole number"),
    "a negative seed": (["seed=-1"], "seed=-1"),
    "a dial next to a preset": (["sweep=embed35", "tau=3"], "tau"),
    "an infinite k": (["embed_transform=nearest_k", "k=inf"], "k=inf: expected a whole number"),
    "no samples": (["samples=0"], "samples=0"),
    "more samples than data": (["samples=99999"], "samples=99999: the data have only"),
    "too many shots": (["shots=500"], "shots=500"),
    "an invalid number": (["embed_transform=anchor_offset", "eps=big"], "eps=big: expected a number"),
    "k above the vocabulary": (["embed_transform=nearest_k", "k=5000"], "k=5000: must be between 1 and"),
    "alpha out of range": (["embed_transform=nearest_k", "alpha=1.5"], "alpha=1.5"),
    "tau out of range": (["embed_transform=soft_vocab", "tau=0"], "tau=0.0"),
    "scale out of range": (["embed_transform=rms_matching", "target_scale=-1"], "target_scale=-1.0"),
    "factor out of range": (["embed_source=scaled", "factor=0"], "factor=0.0"),
    "an unknown dtype": (["dtype=float8"], "dtype=float8"),
    "an unknown device": (["device=tpu"], "device=tpu"),
    "a stray dial of a chain": (["embed_transform=chain", "eps=0.1"], "embed_transform=chain has no such dial"),
    "a step that does not exist": (
        ["embed_transform=chain", "steps=rms_scale1.0+anchor"],
        "no configuration has this name",
    ),
    "a missing data file": (["data=file", "path=nowhere.json"], "nowhere.json: no such file"),
    "a data file not named": (["data=file"], "no path given"),
    "a missing model": (["model=path", "model.path=./nowhere"], "./nowhere"),
    "a missing summary": (["task=analyze", "summary=nowhere.json"], "nowhere.json: no such file"),
    "a pattern that matches nothing": (["-m", "sweep=embed35", "only=nearest"], "only='nearest'"),
    "a dial that the sweep sets": (["-m", "sweep=embed35", "eps=0.3"], "eps"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_message(cli, case):
    arguments, expected = BAD[case]
    chosen = {argument.split("=")[0] for argument in arguments}
    defaults = [argument for argument in SMALL if argument.split("=")[0] not in chosen]
    status, _, err = cli(*arguments, *defaults)
    assert status == 1
    assert expected in err
    assert "Traceback" not in err
    assert err.count("error:") == 1


def test_an_output_folder_that_is_a_file_is_explained(cli, tmp_path):
    (tmp_path / "taken").write_text("")
    status, _, err = cli(*SMALL, "out=taken/here")
    assert status == 1
    assert "taken" in err
    assert "out=FOLDER" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_full_disk_stops_the_sweep_and_keeps_what_is_finished(cli, monkeypatch):
    import latentwire.harness.results as results

    real = results.write_jsonl

    def full(path, rows):
        if "rms" in path.name:
            monkeypatch.setattr(
                os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device"))
            )
        real(path, rows)

    monkeypatch.setattr(results, "write_jsonl", full)
    status, _, err = cli("-m", "sweep=smoke", *SMALL)
    assert status == 1
    assert "No space left on device" in err
    assert "finished results are kept" in err
    assert sorted(path.name for path in Path("outputs/smoke").iterdir()) == [
        "baseline.json",
        "baseline.predictions.jsonl",
        "control_empty.json",
        "control_empty.predictions.jsonl",
    ]


@pytest.mark.slow
def test_a_damaged_result_fails_the_sweep_and_is_kept(cli):
    """The error names the file; force=true overwrites it."""
    command = [*PAIR, *SMALL]
    cli(*command)
    damaged = Path("outputs/smoke/baseline.json")
    damaged.write_text('{"name": "base')
    status, _, err = cli(*command)
    assert status == 1
    assert "baseline.json is not readable as JSON" in err
    assert "1 of 2 configurations failed" in err
    assert damaged.read_text() == '{"name": "base'
    status, _, _ = cli(*command, "force=true")
    assert status == 0


def test_truncated_predictions_make_a_result_unfinished(cli):
    cli(*SMALL)
    rows = Path("outputs/single/baseline.predictions.jsonl")
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:-1]))
    status, _, err = cli(*SMALL)
    assert status == 1
    assert "has 5 rows, but its result has num_samples=6" in err
    assert cli(*SMALL, "force=true")[0] == 0


def test_model_id_and_samples_come_from_the_environment(cli, monkeypatch, tiny):
    tiny.model.save_pretrained("my-model")
    tiny.tokenizer.save_pretrained("my-model")
    monkeypatch.setenv("MODEL_ID", "my-model")
    monkeypatch.setenv("SAMPLES", "3")
    assert cli("shots=1", "max_new_tokens=2")[0] == 0
    result = read_json("outputs/single/baseline.json")
    assert (result["model"], result["num_samples"]) == ("path", 3)
    assert result["config"]["model"]["path"] == "my-model"
    # The command line overrides the environment.
    assert cli("shots=1", "max_new_tokens=2", "model=tiny_random", "samples=2")[0] == 0
    result = read_json("outputs/single/baseline.json")
    assert (result["model"], result["num_samples"]) == ("tiny_random", 2)


def test_examples_longer_than_the_context_are_counted(cli):
    contexts = {f"q{i}": f"Number {i} lives here." for i in range(4)} | {"long": "Number " + "word " * 5000}
    rows = [{"id": i, "context": context, "question": "Who?", "answers": "Number"} for i, context in contexts.items()]
    Path("mine.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    status, _, err = cli(
        "data=file", "path=mine.jsonl", "model=tiny_random", "samples=5", "shots=0", "max_new_tokens=2"
    )
    assert status == 0
    assert "1 examples do not fit" in err
    result = read_json("outputs/single/baseline.json")
    assert (result["num_samples"], result["too_long"], result["too_long_ids"]) == (4, 1, ["long"])


@pytest.mark.slow
def test_a_killed_sweep_resumes_to_the_same_summary(tmp_path):
    sweep = ["-m", "sweep=smoke", "only=baseline|rms*|nearest*", *SMALL, "embed_source=text,noisy"]
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
    whole = start("run", *sweep, folder=tmp_path / "whole")
    assert whole.wait() == [0], whole.told()
    smoke = tmp_path / "killed/outputs/smoke"
    for pause in (0.0, 0.05, 0.15):
        finished = len(list(smoke.glob("*[0-9eB].json")))
        start("run", *sweep, folder=tmp_path / "killed").kill_when(
            lambda finished=finished: len(list(smoke.glob("*[0-9eB].json"))) > finished, pause
        )
    assert not (smoke / "summary.json").exists()
    (tmp_path / "killed/told.txt").unlink()
    done = start("run", *sweep, folder=tmp_path / "killed")
    assert done.wait() == [0], done.told()
    assert done.told().count("(finished before)") >= 3
    summaries = [
        without_timings(read_json(tmp_path / folder / "outputs/smoke/summary.json")) for folder in ("whole", "killed")
    ]
    assert summaries[0] == summaries[1]
    assert [path.name for path in smoke.iterdir() if path.name.endswith(".tmp")] == []


@pytest.mark.slow
def test_two_processes_match_one(tmp_path):
    """The two are started by the real launcher, each with one thread, as is the one."""
    sweep = ["-m", "sweep=smoke", "only=baseline|nearest*|random*", *SMALL, "batch_tokens=700"]
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    one = start("run", *sweep, folder=tmp_path / "one")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu"]
    two = subprocess.run([*launcher, *command("run", *sweep)[1:]], cwd=tmp_path / "two", env=environment(),
                         capture_output=True, text=True)  # fmt: skip
    assert (one.wait(), two.returncode) == ([0], 0), one.told() + two.stderr
    one, two = (read_json(tmp_path / folder / "outputs/smoke/summary.json") for folder in ("one", "two"))
    assert two["results"][0]["processes"] == 2
    for summary in (one, two):
        for result in [*summary["results"], *summary["controls"]]:
            for key in ("time_sec", "job_sec", "timing", "processes", "device"):
                del result[key]
    assert one == two
    for name in ("baseline", "nearest_k5_a0.5", "random_k3"):
        files = [tmp_path / folder / f"outputs/smoke/{name}.predictions.jsonl" for folder in ("one", "two")]
        assert files[0].read_bytes() == files[1].read_bytes()
