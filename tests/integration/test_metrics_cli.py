"""Answer metrics and data readers from the command line: built in, of a user's own module, and in old results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latentwire.analysis.records import Summary
from latentwire.data import examples  # noqa: F401 (registers what is there without plugins)
from latentwire.records import EvaluationResult, ExampleRow
from latentwire.stats.formatting import format_score
from tests.helpers.files import read_json, read_rows
from tests.helpers.plugins import forget, forgotten_afterwards
from tests.helpers.programs import start
from tests.helpers.records import mismatches
from tests.helpers.results import without_timings

pytestmark = pytest.mark.usefixtures("one_thread")

METRIC = '''
from latentwire.evaluation.metrics import register_metric


@register_metric("noise", label="Noise", higher_is_better=False)
def noise(prediction, references):
    """The share of characters that are not letters."""
    return sum(not character.isalpha() for character in prediction) / max(1, len(prediction))
'''
READER = """
import csv

from latentwire.data.examples import register_reader


@register_reader("table")
def read(spec):
    return [(str(path), rows(path)) for path in spec.files()]


def rows(path):
    with path.open(encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file), 1):
            yield f"row {number}", {"context": row["passage"], "question": row["asks"], "answers": row["answer"]}
"""
SMALL = ["model=tiny_random", "samples=8", "shots=1", "max_new_tokens=3"]
SWEEP = ["-m", *SMALL, "embed_source=scaled", "embed_transform=baseline,rms_matching,random_interpolation"]
TABLE = "passage,asks,answer\n" + "".join(f"Number {i} is here.,Which number?,{i}\n" for i in range(4))


@pytest.fixture
def plugin(tmp_path) -> Iterator[Path]:
    """Return the file of a module with a metric and a reader, which is gone after the test."""
    path = tmp_path / "scores.py"
    path.write_text(METRIC + READER, encoding="utf-8")
    with forgotten_afterwards(tmp_path):
        yield path


@pytest.mark.slow
def test_a_metric_of_a_plugin_is_the_primary_one(cli, plugin):
    """Lower is better, so that the analysis shows 1 - score and ranks by it."""
    status, out, err = cli(*SWEEP, "plugins=[scores]", "primary_metric=noise", "min_clean_score=0")
    assert status == 0, err
    summary = read_json("outputs/single/summary.json")
    assert mismatches(Summary, summary) == []
    assert summary["primary_metric"] == {"name": "noise", "label": "1 - Noise", "higher_is_better": False}
    noises = {}
    for result in summary["results"]:
        rows = read_rows(Path(f"outputs/single/{result['name']}.predictions.jsonl"))
        assert [problem for row in rows for problem in mismatches(ExampleRow, row)] == []
        own = [sum(not c.isalpha() for c in row["prediction"]) / len(row["prediction"]) for row in rows]
        assert [row["scores"]["noise"] for row in rows] == own
        assert result["scores"]["noise"]["mean"] == pytest.approx(sum(own) / len(own))
        noises[result["name"]] = sum(own) / len(own)
        assert f"{result['name']}  Noise {format_score(sum(own) / len(own))} [" in err
    assert len(set(noises.values())) == 3
    assert [row["name"] for row in summary["sorted_by_score"]] == sorted(noises, key=noises.__getitem__)
    for row in summary["sorted_by_score"]:
        assert row["score"] == pytest.approx(1 - noises[row["name"]])
        assert row["score_interval"][0] <= row["score"] <= row["score_interval"][1]
    assert [row["f1"] for row in summary["sorted_by_f1"]] == sorted((r["f1"] for r in summary["results"]), reverse=True)
    (group,) = summary["analysis"]["groups"]
    assert group["baseline_score"] == pytest.approx(1 - noises["baseline@scaled117.0"])
    assert "1 - Noise" in out
    assert mismatches(EvaluationResult, read_json("outputs/single/rms_scale1.0@scaled117.0.json")) == []
    # The summary names the metric, so that the analysis needs neither the setting nor the module.
    forget("scores")
    assert cli("task=analyze", "sweep=none", "summary=outputs/single/summary.json", "min_clean_score=0")[1] == out
    _, by_f1, _ = cli("task=analyze", "summary=outputs/single/summary.json", "primary_metric=f1", "min_clean_score=0")
    assert "Noise" not in by_f1 and "F1" in by_f1


@pytest.mark.slow
def test_a_changed_metric_is_computed_again(cli, plugin):
    """Results without the metric stay valid."""
    for more in ([], ["metrics=[noise]"]):
        assert "finished before" not in cli(*SMALL, "plugins=[scores]", f"out={len(more)}", *more)[2]
        assert "finished before" in cli(*SMALL, "plugins=[scores]", f"out={len(more)}", *more)[2]
    result = read_json("1/baseline.json")
    assert list(result["scores"]) == ["f1", "em", "noise"]
    assert result["scores"]["f1"] == read_json("0/baseline.json")["scores"]["f1"]
    plugin.write_text(METRIC.replace("not character", "character") + READER, encoding="utf-8")
    forget("scores")
    assert "finished before" in cli(*SMALL, "plugins=[scores]", "out=0")[2]
    before = read_json("1/baseline.json")["scores"]["noise"]["mean"]
    assert "finished before" not in cli(*SMALL, "plugins=[scores]", "out=1", "metrics=noise")[2]
    assert read_json("1/baseline.json")["scores"]["noise"]["mean"] == pytest.approx(1 - before)


@pytest.mark.parametrize(
    ("returned", "arguments", "message"),
    [
        ("2.0", ["metrics=[noise]"], "baseline: metrics=noise: gives 2.0 for example sqa-"),
        ("float('nan')", ["metrics=[noise]"], "baseline: metrics=noise: gives nan for example sqa-"),
        ("1 / 0", ["primary_metric=noise"], "metrics=noise: raises ZeroDivisionError for example sqa-"),
        ("1.0", ["metrics=[bleu]"], "metrics=bleu: unknown; use one of f1, em, likelihood, noise"),
        ("1.0", ["primary_metric=bleu"], "primary_metric=bleu: unknown; use one of f1, em, likelihood, noise"),
        ("1.0", ["metrics=[[f1]]"], "metrics=[['f1']]: expected a list of names, such as metrics=[likelihood]"),
        ("1.0", ["task=latent_report", "metrics=[noise]"], "task=latent_report compares by F1 and by the likelihood"),
        ("1.0", ["task=latent_report", "primary_metric=em"], "primary_metric=em: task=latent_report compares by F1"),
        ("1.0", ["min_clean_f1=0.2"], "min_clean_f1=0.2: this setting has a new name; use min_clean_score=0.2"),
    ],
)
def test_errors_of_metrics_are_one_line(cli, plugin, returned, arguments, message):
    plugin.write_text(METRIC.replace("return sum", f"return {returned} or sum"), encoding="utf-8")
    status, out, err = cli(*SMALL, "plugins=[scores]", *arguments)
    assert (status, out) == (1, "")
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.float_path
def test_the_likelihood_is_the_same_with_two_processes(tmp_path):
    command = [*SMALL, "embed_source=noisy", "embed_transform=nearest_k", "metrics=[likelihood]", "batch_tokens=500"]
    for ranks in (1, 2):
        ended = start("run", *command, f"out=of{ranks}", folder=tmp_path, ranks=ranks)
        assert ended.wait() == [0] * ranks, ended.told()
    rows = [read_rows(tmp_path / f"of{n}" / "nearest_k5_a0.5@noisy0.0dB.predictions.jsonl") for n in (1, 2)]
    found = [{row["id"]: row["scores"].pop("likelihood") for row in own} for own in rows]
    assert rows[0] == rows[1]
    assert list(found[0]) == list(found[1])
    # A BLAS library may round differently where a buffer begins elsewhere in memory.
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    result = read_json(tmp_path / "of2" / "nearest_k5_a0.5@noisy0.0dB.json")
    assert result["processes"] == 2
    assert result["scores"]["likelihood"]["mean"] == pytest.approx(sum(found[1].values()) / 8)


def as_format_1(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result as 0.2.0 wrote it."""
    kept = {key: value for key, value in result.items() if key not in ("format", "scores", "num_examples")}
    return {**kept, "asked": result["num_examples"]}


@pytest.mark.slow
def test_results_of_format_1_are_used(cli):
    """The analysis reads them, and the same sweep does not run them again."""
    status, out, _ = cli(*SWEEP)
    assert status == 0
    folder = Path("outputs/single")
    summary = read_json(folder / "summary.json")
    old = {key: value for key, value in summary.items() if key not in ("format", "primary_metric", "sorted_by_score")}
    old |= {part: [as_format_1(result) for result in summary[part]] for part in ("results", "controls")}
    (folder / "summary.json").write_text(json.dumps(old))
    names = [result["name"] for result in [*summary["results"], *summary["controls"]]]
    for name in names:
        (folder / f"{name}.json").write_text(json.dumps(as_format_1(read_json(folder / f"{name}.json"))))
        path = folder / f"{name}.predictions.jsonl"
        rows = [{key: value for key, value in row.items() if key != "scores"} for row in read_rows(path)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, again, err = cli("task=analyze", f"summary={folder}/summary.json")
    assert (status, again) == (0, out), err
    status, again, err = cli(*SWEEP)
    assert (status, again) == (0, out), err
    assert err.count("(finished before)") == len(names)
    assert without_timings(read_json(folder / "summary.json")) == without_timings(summary)


@pytest.mark.parametrize("chosen", [["data=table"], ["data=file", "data.origin=table"]])
def test_a_reader_of_a_plugin_reads_the_data(cli, plugin, chosen):
    Path("mine.csv").write_text(TABLE)
    command = [*chosen, "path=mine.csv", "plugins=[scores]", "model=tiny_random", "samples=3", "shots=1"]
    status, _, err = cli(*command, "max_new_tokens=2")
    assert status == 0, err
    result = read_json("outputs/single/baseline.json")
    assert result["data"] == chosen[0].removeprefix("data=")
    rows = read_rows(Path("outputs/single/baseline.predictions.jsonl"))
    assert len({row["id"] for row in rows} & {f"row {number}" for number in range(1, 5)}) == 3
    assert all(row["question"] == "Which number?" and row["references"][0].isdigit() for row in rows)
    assert "finished before" in cli(*command, "max_new_tokens=2")[2]
    Path("mine.csv").write_text(TABLE + "Number 9 is here.,Which number?,9\n")
    assert "finished before" not in cli(*command, "max_new_tokens=2")[2]
    plugin.write_text(METRIC + READER + "\n# changed\n", encoding="utf-8")
    forget("scores")
    assert "finished before" not in cli(*command, "max_new_tokens=2")[2]
    Path("mine.csv").write_text(TABLE.replace("here.,Which number?,2", "here.,Which number?,7"))
    status, _, err = cli(*command, "max_new_tokens=2")
    assert status == 1
    assert "mine.csv, row 3 (id row 3): the answer '7' is not in its context" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data=table"], "data=table: no path given; add path=FILE"),
        (["data=tables"], "data=tables: unknown; use one of file, hub, short_qa, squad, table"),
        (["data.origin=tables"], "data.origin=tables: unknown; use one of short_qa, file, hub, table"),
        (["data=hub"], "no repository given; set data.repo=ORG/NAME"),
    ],
)
def test_errors_of_readers_are_one_line(cli, plugin, arguments, message):
    status, out, err = cli(*arguments, "plugins=[scores]", "model=tiny_random", "samples=2")
    assert (status, out) == (1, "")
    assert message in err.splitlines()[-1]
