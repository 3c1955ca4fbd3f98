"""Records of results: files of format 1 are upgraded, and files that cannot be read are refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from latentwire.harness.results import DamagedResultError
from latentwire.records import FORMAT, read_example_rows, read_result, read_summary, sweep_sample

# A result as 0.2.0 wrote it.
OLD: dict[str, Any] = {
    "name": "baseline@latent", "experiment": "baseline", "family": "baseline", "dials": {}, "source": "latent",
    "source_dials": {"checkpoint": "run"}, "group": "latent", "variant": "", "control": None,
    "config_hash": "5679bb18c4a909e4", "model": "tiny_random", "model_id": "tiny_random", "data": "short_qa",
    "status": "ok", "f1": 0.75, "f1_interval": [0.5, 1.0], "em": 0.5, "em_interval": [0.1, 0.9],
    "empty_rate": 0.0, "empty_rate_interval": [0.0, 0.6], "num_samples": 2, "too_long": 0, "too_long_ids": [],
    "left_out": {}, "cut_off": 1, "relative_change": 0.0, "identity": True, "warnings": [], "fit": None,
    "latents": {"positions": 5.0, "likeness": 0.25, "warnings": []}, "time_sec": 1.0,
    "timing": {"examples_per_sec": 2.0, "decoded": 2, "reused": 0, "decode_sec": 0.5, "positions": 40,
               "shots_sec": 0.1, "shots_positions": 300},
    "job_sec": 2.0, "asked": 2, "seed": 0, "dtype": "float32", "device": "cpu", "processes": 1,
    "versions": {"latentwire": "0.2.0"}, "git_commit": None, "config": {"seed": 0},
}  # fmt: skip
OLD_ROW: dict[str, Any] = {"id": "q1", "question": "Who?", "references": ["Ann"], "prediction": "Ann", "f1": 1.0,
                           "em": 1.0, "cut_off": False, "change": 0.0}  # fmt: skip
# What 0.1.0 did not write.
LATER = ("variant", "control", "model_id", "warnings", "fit", "latents", "job_sec", "asked")


def first_version() -> dict[str, Any]:
    """Return a result as 0.1.0 wrote it."""
    kept = {key: value for key, value in OLD.items() if key not in LATER}
    return {**kept, "timing": {"examples_per_sec": 2.0, "decoded": 2, "reused": 0}}


def written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_result_of_format_1_is_upgraded(tmp_path):
    found = read_result(written(tmp_path / "a.json", OLD))
    assert found["format"] == FORMAT == 2
    assert "asked" not in found and found["num_examples"] == 2
    assert found["scores"] == {
        "f1": {"mean": 0.75, "interval": [0.5, 1.0]}, "em": {"mean": 0.5, "interval": [0.1, 0.9]},
    }  # fmt: skip
    latents = found["latents"]
    assert latents is not None and "likeness" not in latents
    assert (latents["mean_pairwise_cosine"], latents["positions"]) == (0.25, 5.0)
    unchanged = OLD.keys() - {"asked", "latents"}
    assert {key: found[key] for key in unchanged} == {key: OLD[key] for key in unchanged}  # type: ignore[literal-required]
    assert read_result(written(tmp_path / "b.json", found)) == found  # nothing is left to upgrade


def test_a_result_of_the_first_version_is_upgraded(tmp_path):
    found = read_result(written(tmp_path / "a.json", first_version()))
    assert (found["variant"], found["control"], found["model_id"]) == ("", None, "tiny_random")
    assert (found["warnings"], found["fit"], found["latents"], found["num_examples"]) == ([], None, None, None)
    assert found["timing"]["positions"] == 0  # not measured, so no detector compares it
    assert found["timing"]["decoded"] == 2
    assert "job_sec" not in found


def test_a_failed_result_needs_no_scores(tmp_path):
    scores = ("f1", "em", "empty_rate", "too_long", "left_out", "cut_off", "fit", "latents", "timing", "time_sec",
              "relative_change", "identity", "num_samples", "warnings")  # fmt: skip
    failed = {key: value for key, value in OLD.items() if not key.startswith(scores)}
    found = read_result(written(tmp_path / "a.json", {**failed, "status": "failed", "error": "eps=-1: wrong"}))
    assert found["error"] == "eps=-1: wrong"
    assert "scores" not in found
    with pytest.raises(DamagedResultError, match=r"a\.json lacks cut_off, em, em_interval, .*restore the file"):
        read_result(written(tmp_path / "a.json", failed))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 3}, "has format 3, and this version reads up to 2: update this project"),
        ({"seed": ...}, "lacks seed: restore the file, or delete it to run that configuration again"),
        ({"f1": ...}, "lacks f1"),
        ({"em_interval": ...}, "lacks em_interval"),
    ],
)
def test_a_result_that_cannot_be_read_gets_a_reason(tmp_path, change, message):
    upgraded = dict(read_result(written(tmp_path / "a.json", OLD)))
    content = {key: value for key, value in {**upgraded, **change}.items() if value is not ...}
    with pytest.raises(DamagedResultError, match=message):
        read_result(written(tmp_path / "a.json", content))


def test_content_of_another_kind_is_refused(tmp_path):
    with pytest.raises(DamagedResultError, match=r"a\.json is not a JSON object"):
        read_result(written(tmp_path / "a.json", [OLD]))
    for content in ([], {"results": 5}, {"name": "a"}):
        with pytest.raises(DamagedResultError, match=r"a\.json: not a summary of a sweep; give the summary\.json"):
            read_summary(written(tmp_path / "a.json", content))


def test_rows_of_format_1_get_their_scores(tmp_path):
    path = tmp_path / "a.predictions.jsonl"
    other = {**OLD_ROW, "id": "q2", "f1": 0.5, "em": 0.0, "scores": {"f1": 0.5, "em": 0.0, "mine": 0.25}}
    path.write_text("\n".join(map(json.dumps, [OLD_ROW, other])), encoding="utf-8")
    first, second = read_example_rows(path)
    assert first == {**OLD_ROW, "scores": {"f1": 1.0, "em": 1.0}}
    assert second["scores"] == {"f1": 0.5, "em": 0.0, "mine": 0.25}
    without = {key: value for key, value in OLD_ROW.items() if key not in ("cut_off", "change")}
    path.write_text(json.dumps(without), encoding="utf-8")
    assert read_example_rows(path) == [{**without, "scores": {"f1": 1.0, "em": 1.0}}]  # as 0.1.0 wrote them
    for missing in ("f1", "id", "references"):
        path.write_text(json.dumps({k: v for k, v in OLD_ROW.items() if k != missing}), encoding="utf-8")
        with pytest.raises(DamagedResultError, match=rf"lacks {missing}"):
            read_example_rows(path)


def test_a_summary_of_format_1_is_upgraded(tmp_path):
    short = {key: value for key, value in OLD.items() if key not in ("config", "versions", "too_long_ids")}
    old = {"sweep": "smoke", "total_experiments": 1, "results": [short], "sorted_by_f1": [], "analysis": {"floor": 0.1}}
    found = read_summary(written(tmp_path / "summary.json", old))
    assert (found["format"], found["controls"], found["budget"], found["command"]) == (2, [], None, None)
    assert found["primary_metric"] == {"name": "f1", "label": "F1", "higher_is_better": True}
    assert found["results"][0]["num_examples"] == 2
    assert found["results"][0]["scores"]["em"]["mean"] == 0.5
    assert (found["part"], found["samples"], found["seed"], found["shots_seed"]) == ("all", 2, 0, 0)
    with pytest.raises(DamagedResultError, match=r"summary\.json lacks num_samples: .* or run the sweep again"):
        del short["num_samples"]
        read_summary(written(tmp_path / "summary.json", {**old, "controls": [short], "results": []}))
    with pytest.raises(DamagedResultError, match=r"lacks budget, command, controls, primary_metric: "):
        read_summary(written(tmp_path / "summary.json", {**old, "format": 2}))
    with pytest.raises(DamagedResultError, match="reads up to 2: update this project"):
        read_summary(written(tmp_path / "summary.json", {**old, "format": 3}))


BUDGET = {"wanted": 9, "first": 4, "halvings": [{"samples": 8}, {"samples": 9}]}


def test_a_summary_keeps_its_own_draw(tmp_path):
    """Seeds that differ among the results of 0.3.0 give none; a budget names the samples that it wanted."""
    short = {key: value for key, value in OLD.items() if key not in ("config", "versions", "too_long_ids")}
    old: dict[str, Any] = {"sweep": "smoke", "results": [short, {**short, "seed": 1}], "budget": BUDGET}
    found = read_summary(written(tmp_path / "summary.json", old))
    assert (found["samples"], found["seed"], found["shots_seed"]) == (9, None, None)
    budget = found["budget"]
    assert budget is not None and [halving["decided_on"] for halving in budget["halvings"]] == [4, 8]
    new = {"part": "select", "samples": 4, "seed": 1, "shots_seed": 2}
    found = read_summary(written(tmp_path / "summary.json", {**old, **new}))
    assert {**found, **new} == found


def test_the_draw_of_a_sweep_is_what_its_results_share():
    config = {"part": "confirm", "samples": 8, "seed": 3, "shots_seed": 5, "shots": 2}
    assert sweep_sample([config, dict(config)]) == {"part": "confirm", "samples": 8, "seed": 3, "shots_seed": 5}
    other = sweep_sample([config, {**config, "seed": 4}])
    assert (other["seed"], other["shots_seed"]) == (None, 5)
