"""The report: panels and figures, the choice of examples, and what the page contains."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from latentwire.analysis.records import Summary
from latentwire.harness import app
from latentwire.harness.tracking import NoTracker
from latentwire.records import F1
from latentwire.reports import figures
from latentwire.reports import html as report
from latentwire.reports.figures import draw_all
from latentwire.reports.html import choose_shown_examples, page, shared
from latentwire.reports.panels import DARK, LIGHT, dial_panels, matrix, reference_lines, scale_top
from latentwire.reports.tables import tables
from latentwire.sweeps import task
from tests.helpers.made_up_sweep import EM, HOSTILE, KINDS, made_up_sweep, page_content
from tests.helpers.records import mismatches


def row(name: str, **dials: object) -> dict:
    return {"name": name, "experiment": name, "family": "f", "dials": dials}


def test_one_dial_is_a_line_on_an_axis_that_fits_its_values():
    rows = [row("c", eps=0.3), row("a", eps=0.01), row("b", eps=0.1)]
    (panel,) = dial_panels(rows, ["a", "b", "c"])
    assert (panel["kind"], panel["dial"], panel["axis"]) == ("lines", "eps", "log")
    (line,) = panel["lines"]
    assert line["label"] == "" and [point["name"] for point in line["points"]] == ["a", "b", "c"]
    at = [point["at"] for point in line["points"]]
    assert (
        at
        == [tick["at"] for tick in panel["ticks"]]
        == pytest.approx([0.06, 0.06 + 0.88 * math.log(10) / math.log(30), 0.94])
    )
    (panel,) = dial_panels([row("a", s=0.8), row("b", s=1.0), row("c", s=1.2)], [])
    assert panel["axis"] == "linear"
    assert [tick["at"] for tick in panel["ticks"]] == pytest.approx([0.06, 0.5, 0.94])
    (panel,) = dial_panels([row("b", how="x"), row("a", how="w")], ["b", "a"])
    assert panel["axis"] == "names" and [tick["value"] for tick in panel["ticks"]] == ["x", "w"]
    assert [tick["at"] for tick in panel["ticks"]] == [0.06, pytest.approx(0.94)]
    (panel,) = dial_panels([row("a", db=-6.0), row("b", db=60.0)], [])
    assert panel["axis"] == "linear"
    (panel,) = dial_panels([row("a", layers=[1, 2]), row("b", layers=None)], [])
    assert panel["axis"] == "names" and [tick["value"] for tick in panel["ticks"]] == ["[1, 2]", None]


def test_values_near_each_other_are_written_on_two_lines():
    (panel,) = dial_panels([row(str(e), eps=e) for e in (0.01, 0.1, 0.11, 0.12, 0.3)], [])
    assert [tick["lower"] for tick in panel["ticks"]] == [False, False, True, False, False]


def test_two_dials_are_lines_or_a_grid():
    rows = [row(f"{c},{t}", size=c, tau=t) for t in (1.0, 0.7) for c in (128, 256, 512)]
    (panel,) = dial_panels(rows, [])
    assert panel["dial"] == "size" and [line["label"] for line in panel["lines"]] == ["tau 0.7", "tau 1.0"]
    assert [point["name"] for point in panel["lines"][1]["points"]] == ["128,1.0", "256,1.0", "512,1.0"]
    rows = [row(f"{k},{a}", k=k, alpha=a) for k, a in [(10, 0.5), (3, 0.2), (5, 0.5), (5, 0.7), (3, 0.9)]]
    (panel,) = dial_panels(rows, [])
    assert (panel["kind"], panel["row_dial"], panel["row_values"]) == ("grid", "k", [3, 5, 10])
    assert (panel["dial"], panel["values"]) == ("alpha", [0.2, 0.5, 0.7, 0.9])
    assert panel["cells"] == [
        ["3,0.2", None, None, "3,0.9"],
        [None, "5,0.5", "5,0.7", None],
        [None, "10,0.5", None, None],
    ]
    rows = [row(f"{a}{b}{c}", a=a, b=b, c=c) for a in (1, 2) for b in (1, 2) for c in (1, 2, 3)]
    (panel,) = dial_panels(rows, [])
    assert panel["dial"] == "c" and [line["label"] for line in panel["lines"]][1] == "a 1, b 2"


def test_panels_follow_the_order_of_the_sweep():
    """A family without a varied dial has no panel."""
    first, second = row("a1", x=1) | {"family": "a"}, row("a2", x=2) | {"family": "a"}
    rows = [row("f1", x=1), row("f2", x=2), row("alone", x=1) | {"family": "alone"}, second, first]
    assert [panel["family"] for panel in dial_panels(rows, ["alone", "a1", "a2", "f1", "f2"])] == ["a", "f"]


def test_the_matrix_has_a_blank_for_a_missing_result():
    def group(name: str, *experiments: str) -> dict:
        return {"group": name, "ranking": [{"experiment": e, "name": f"{e}@{name}"} for e in experiments]}

    assert matrix([group("one", "a")], ["a"]) is None
    found = matrix([group("one", "b", "a"), group("two", "a")], ["a", "failed", "b", "a"])
    assert found == {
        "sources": ["one", "two"],
        "transforms": ["a", "b"],
        "cells": [["a@one", "a@two"], ["b@one", None]],
    }


def test_scales_end_at_the_tenth_above_what_is_drawn():
    def group(high: float, clean: float | None = None) -> dict:
        rows = [{"name": "b", "verdict": "baseline", "score": 0.0, "score_interval": [0.0, high]}]
        controls = clean and {"clean": {"name": "c", "score": clean}, "lower": [], "scrambled": None}
        return {"ranking": rows, "controls": controls}

    assert scale_top([group(0.41), group(0.32)]) == 0.5
    assert scale_top([group(0.4)]) == 0.4
    assert scale_top([group(0.0)]) == 0.1
    assert scale_top([group(1.0)]) == 1.0
    assert scale_top([group(0.2, clean=0.68)]) == 0.7
    assert scale_top([]) == 0.1


def test_bars_have_lines_for_the_baseline_and_the_controls():
    summary, _ = made_up_sweep()
    text, scaled = summary["analysis"]["groups"]
    assert reference_lines(text) == [
        {"kind": "baseline", "label": "baseline (clean control)", "score": 0.6875},
        {"kind": "empty", "label": "empty context", "score": 0.0625},
    ]
    assert [(line["kind"], line["score"]) for line in reference_lines(scaled)] == [
        ("baseline", 0.0625), ("clean", 0.6875), ("empty", 0.0625),
    ]  # fmt: skip
    alone = {"ranking": [{"name": "x", "verdict": "not compared", "score": 0.5}], "controls": None}
    assert reference_lines(alone) == []


def test_the_page_holds_the_examples_that_differ_most():
    """Their number is bounded, and long texts are cut."""

    def answer(number: int, f1: float, text: str = "t") -> dict:
        return {"id": f"q{number}", "question": "?" * 301, "references": ["r"], "prediction": text,
                "scores": {"f1": f1}}  # fmt: skip

    same = [answer(0, 1.0), answer(1, 1.0), answer(2, 0.0), answer(3, 0.5)]
    other = [answer(0, 1.0, "x" * 300), answer(1, 0.0), answer(2, 0.0), answer(3, 1.0, "y" * 301)]
    found = choose_shown_examples({"a": same, "b": other}, 7, F1)
    assert [item["id"] for item in found["items"]] == ["q1", "q3", "q0"]  # variances 1/4, 1/16, 0
    assert found["total"] == 4
    assert found["answers"]["b"] == [("t", 0.0), ("y" * 300 + " \u2026", 1.0), ("x" * 300, 1.0)]
    assert found["items"][0]["question"] == "?" * 300 + " \u2026"
    assert found["cut"] == 4  # three questions and an answer
    assert len(choose_shown_examples({"a": same, "b": other}, 1, F1)["items"]) == 1
    assert len(choose_shown_examples({"a": same, "b": other}, 8, F1)["items"]) == 4
    strangers = [answer(7, 0.0), answer(8, 0.0)]
    found = choose_shown_examples({"a": same, "b": other, "c": strangers}, 5, F1)
    assert [item["id"] for item in found["items"]] == ["q1", "q7", "q3"]  # results with other examples take turns
    assert found["answers"]["c"] == [None, ("t", 0.0), None]
    assert choose_shown_examples({}, 5, F1) == {"total": 0, "cut": 0, "items": [], "answers": {}}
    wrong = {"name": "f1", "label": "1 - errors", "higher_is_better": False}
    assert choose_shown_examples({"b": other[:1]}, 5, wrong)["answers"]["b"] == [("x" * 300, 0.0)]


def test_shared_settings_are_found():
    first = {"samples": 5, "name": "a", "deep": {"same": 1, "other": 1}, "only": 1}
    second = {"samples": 5, "name": "b", "deep": {"same": 1, "other": 2}}
    assert shared([first, second]) == {"samples": 5, "deep": {"same": 1}}
    assert shared([first]) == first
    assert shared([]) == {}


def test_the_page_describes_the_run():
    shown = page_content()
    run = dict(shown["run"])
    assert run["command"] == "python run.py -m sweep=made_up"
    assert run["time"] == "43.0 minutes for 43 results, without loading"  # 2 x 21 and the control, a minute each
    assert (run["versions"], run["seed"], run["git commit"]) == ("torch 9", "3", "not recorded")
    assert json.loads(shown["config"]) == {"samples": 16, "embed": {"same": 1}}
    assert shown["question"] == (
        "Which of 21 repairs lets tiny answer questions of made_up from embeddings of the source text, scaled117.0?"
    )
    assert shown["failures"] == [{"name": "broken", "error": f"k=0: {HOSTILE}"}]


def test_the_command_can_be_typed_again(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/run.py", "-m", "only=baseline|anchor_*", "seed=1,2"])
    assert app.command_line() == "python run.py -m 'only=baseline|anchor_*' seed=1,2"


def test_the_command_has_the_path_of_a_program_in_a_subfolder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["examples/own.py", "seed=1"])
    assert app.command_line() == "python examples/own.py seed=1"


def test_the_page_holds_its_data_and_makes_no_requests():
    shown = page_content()
    html = page(shown)
    assert "default-src 'none'" in html
    template = html.split('{"sweep"')[0] + html.split("</script>", 1)[1]
    asked = r"\bsrc\s*=|href=\"[^#]|@import|url\(|https?:(?!//www.w3.org/2000/svg)|fetch\(|XMLHttpRequest|WebSocket"
    assert not re.search(asked, template)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b", template)
    (block,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', html, flags=re.DOTALL)
    assert json.loads(block) == json.loads(json.dumps(shown))
    assert "\u2028" not in block and "<" not in block
    assert html.count("</script>") == 2 and "{{" not in html
    for name, colour in [*LIGHT.items(), *DARK.items()]:
        assert f"--{name}: {colour};" in html


def luminance(colour: str) -> float:
    """Relative luminance of WCAG."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_lines_have_enough_contrast(colours):
    for ground in ("ground", "panel"):
        assert contrast(colours["ink"], colours[ground]) > 7
        assert contrast(colours["soft"], colours[ground]) > 4.5
    for drawn in ("better", "worse", "noise", "clean", "empty", *(f"line-{i}" for i in range(5))):
        assert contrast(colours[drawn], colours["ground"]) > 3, drawn
    for share in np.linspace(0, 1, 101):  # numbers in the cells of a heat map
        ends = [[int(colours[end][i : i + 2], 16) for i in (1, 3, 5)] for end in ("low", "high")]
        cell = "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(*ends, strict=True))
        ink = colours["on-high" if share > report.HEAT_TEXT_TURNS else "on-low"]
        assert contrast(ink, cell) > 4.5, share


@pytest.mark.slow
def test_figures_replace_earlier_ones(tmp_path):
    summary, _ = made_up_sweep()
    analysis, order = summary["analysis"], [kind[0] for kind in KINDS]
    names = {path.name for path in draw_all(analysis, order, tmp_path)}
    assert names == {"ranking_text.png", "dials_text.png", "ranking_scaled117.0.png", "dials_scaled117.0.png",
                     "matrix.png"}  # fmt: skip
    (tmp_path / "mine.png").write_bytes(b"")
    image = matplotlib.image.imread(tmp_path / "ranking_text.png")
    for name in ("better", "worse", "baseline", "identity"):
        colour = np.array([int(LIGHT[name][i : i + 2], 16) / 255 for i in (1, 3, 5)])
        assert (np.abs(image[..., :3] - colour) < 0.01).all(-1).sum() > 100, name
    draw_all(analysis | {"groups": analysis["groups"][:1]}, order, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"ranking_text.png", "dials_text.png", "mine.png"}


def test_figures_name_the_primary_metric():
    analysis = made_up_sweep(EM)[0]["analysis"]
    group, order, score = analysis["groups"][0], [kind[0] for kind in KINDS], analysis["metric"]["label"]
    (bars,) = figures.ranking(group, score, 1.0).axes
    assert bars.get_xlabel().startswith("exact match, 95% interval\n")
    assert [bar.get_width() for bar in bars.patches][1:] == [row["em"] for row in group["ranking"]][1:]
    labels = {axes.get_ylabel() for axes in figures.dials(group, order, score, 1.0).axes}
    assert "exact match" in labels and "F1" not in labels
    (heat,) = figures.matrix_figure(analysis["groups"], order, score, 1.0).axes
    assert heat.get_title(loc="left") == "exact match"


def test_the_figure_of_a_ranking_has_the_cross_fit_score():
    group = made_up_sweep()[0]["analysis"]["groups"][0]
    best, second = group["ranking"][:2]
    (bars,) = figures.ranking(group, "F1", 1.0).axes
    assert [bar.get_width() for bar in bars.patches][:2] == [best["cross_fit"]["score"], second["score"]]
    (edge, *_), *_ = (line.get_segments() for line in bars.collections if hasattr(line, "get_segments"))
    assert edge[:, 0].tolist() == pytest.approx(best["cross_fit"]["score_interval"])
    assert [tick.get_text()[-2:] == " x" for tick in bars.get_yticklabels()[:2]] == [True, False]
    assert "x the best of 19: chosen on half of the passages" in bars.get_xlabel()


def test_tables_have_the_sources_and_the_draws():
    summary = made_up_sweep()[0]
    drawn = {"group": "text", "experiment": "nearest_k", "family": "nearest_k", "supervised": False, "draws": 3,
             "scores": [0.5, 0.25, 0.75], "mean": 0.5, "spread": 0.25, "difference": 0.125, "difference_spread": 0.0625,
             "better": 1, "wins": 2}  # fmt: skip
    analysis = summary["analysis"] | {"draws": [drawn], "atlas": None, "auto": None}
    found = tables(summary | {"analysis": analysis, "controls": []}, [])
    made = {name: [dict(zip(columns, row, strict=True)) for row in rows] for name, (columns, rows) in found.items()}
    assert [(row["passages"], row["design_effect"], row["detectable"]) for row in made["sources"]] == [
        (16, 1.25, 0.234), (12, 1.25, 0.234)
    ]  # fmt: skip
    assert made["sources"][0]["winner"] == made["ranking"][0]["name"]
    assert made["across"] == [{"sources": 2, "helped": 1, "alpha": 0.05}]
    shown = {"mean": 0.5, "std": 0.25, "difference": 0.125, "difference_std": 0.0625, "better": 1, "wins": 2}
    assert made["draws"] == [{"group": "text", "experiment": "nearest_k", "draws": 3, **shown}]


def test_the_page_has_the_spread_between_draws():
    summary, answers = made_up_sweep()
    best = summary["analysis"]["groups"][0]["best_of_family"][0]
    drawn = {"group": "text", "experiment": best["experiment"], "family": best["family"], "supervised": False,
             "draws": 3, "scores": [0.5, 0.25, 0.75], "mean": 0.5, "spread": 0.25, "difference": None,
             "difference_spread": None, "better": 0, "wins": 0}  # fmt: skip
    analysis = summary["analysis"] | {"draws": [drawn]}
    shown = report.collect(summary | {"analysis": analysis}, answers, [])["draws"]
    assert shown[1].startswith("3 draws of shots and sources on text")
    assert shown[2].split() == [best["experiment"], ".500", "\u00b1", ".250"]


class Logged(NoTracker):
    """A tracker that records the figures of a sweep."""

    def log_summary(self, summary, tables, figures, label):
        self.figures = figures


@pytest.mark.slow
def test_a_sweep_writes_its_report_and_analyze_rewrites_it(cli, monkeypatch):
    logged = Logged()
    monkeypatch.setattr(task, "tracker_of", lambda cfg, session: logged)
    status, _, err = cli("-m", "sweep=smoke", "only=baseline|rms*", "model=tiny_random", "samples=4",
                         "embed_source=text,scaled")  # fmt: skip
    assert status == 0 and "report: outputs/smoke/report.html" in err
    folder = Path("outputs/smoke")
    assert logged.figures == sorted((folder / "figures").iterdir())
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["command"].startswith("python run.py -m sweep=smoke 'only=baseline|rms*'")
    assert mismatches(Summary, summary) == []
    assert {path.name for path in (folder / "figures").iterdir()} >= {"ranking_text.png", "matrix.png"}
    written = (folder / "report.html").read_bytes()
    (block,) = re.findall(rb'<script id="data" type="application/json">(.*?)</script>', written, flags=re.DOTALL)
    shown = json.loads(block)
    assert {row["name"]: row["score"] for group in shown["groups"] for row in group["ranking"]} == {
        result["name"]: result["f1"] for result in summary["results"]
    }
    assert json.loads(shown["config"])["samples"] == 4 and "torch" in dict(shown["run"])["versions"]
    for name, rows in shown["examples"]["answers"].items():
        if (folder / f"{name}.predictions.jsonl").exists():
            lines = [json.loads(line) for line in (folder / f"{name}.predictions.jsonl").read_text().splitlines()]
            assert sorted(text for text, _ in rows) == sorted(line["prediction"] for line in lines)
    (folder / "report.html").unlink()
    status, _, err = cli("task=analyze", "summary=outputs/smoke/summary.json")
    assert status == 0 and "report: outputs/smoke/report.html" in err
    assert (folder / "report.html").read_bytes() == written


@pytest.mark.slow
def test_an_unwritable_report_fails_after_the_analysis(cli):
    cli("-m", "sweep=smoke", "only=baseline", "model=tiny_random", "samples=4")
    Path("outputs/smoke/report.html").unlink()
    Path("outputs/smoke/report.html").mkdir()
    status, out, err = cli("task=analyze", "summary=outputs/smoke/summary.json")
    assert status == 1 and "Verdict" in out and "choose another folder with summary=FOLDER" in err
