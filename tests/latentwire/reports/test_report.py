"""The report: panels and figures, the choice of examples, and the page in a browser without network."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
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
from latentwire.reports.html import choose_shown_examples, collect, page, shared, write_report
from latentwire.reports.panels import DARK, LIGHT, dial_panels, matrix, reference_lines, scale_top
from latentwire.stats.formatting import format_score
from latentwire.sweeps import task
from tests.helpers.records import mismatches
from tests.helpers.results import result_of

HOSTILE = "</script><script>document.title='broken'</script><img src=x onerror='throw 1'>\u2028<!-- & \"q'"
COUNT = 16
KINDS = [
    ("baseline", "baseline", {}),
    *((f"rms_scale{s}", "rms_matching", {"target_scale": s}) for s in (0.8, 1.0, 1.2)),
    *((f"nearest_k{k}_a{a}", "nearest_k", {"k": k, "alpha": a}) for k in (3, 5, 10) for a in (0.2, 0.5, 0.7)),
    *((f"anchor_eps{e}", "anchor_offset", {"eps": e}) for e in (0.01, 0.02, 0.3)),
    *((f"codebook{c}_tau{t}", "soft_codebook", {"codebook_size": c, "tau": t}) for c in (128, 512) for t in (0.7, 1.0)),
    ("random_k3", "random_interpolation", {"k": 3}),
]


EM = {"name": "em", "label": "exact match", "higher_is_better": True}


def made_up_sweep(metric: dict = F1) -> tuple[dict, dict[str, list[dict]]]:
    """Return a summary with every part of an analysis, and its predictions; each score is a count over 16 examples.

    Args:
        metric: The primary metric; EM is F1 / 2.
    """
    results, groups, answers = [], [], {}
    for g, source in enumerate(["text", "scaled117.0"]):
        suffix = "" if source == "text" else f"@{source}"
        rows = []
        for number, (experiment, family, dials) in enumerate(KINDS):
            name, right = experiment + suffix, (5 * number + 3 * g + 11) % (COUNT + 1)
            if experiment == "baseline":
                right = 11 if g == 0 else 1
            f1 = right / COUNT
            score, identity = f1 / 2 if metric == EM else f1, source == "text" and family == "anchor_offset"
            shared_fields = {
                "name": name, "experiment": experiment, "family": family, "dials": dials, "f1": f1,
                "em": f1 / 2, "empty_rate": number / 100, "identity": identity, "num_samples": COUNT, "warnings": [],
            }  # fmt: skip
            results.append(result_of(family, name, np.full(COUNT, f1), source) | shared_fields)
            comparison = dict.fromkeys(("difference", "difference_interval", "p_value", "p_holm"))
            if family == "baseline":
                comparison["verdict"] = "baseline"
            elif identity:
                comparison["verdict"] = "identity"
            else:
                comparison = {"verdict": ("worse", "within noise", "better")[number % 3], "difference": f1 - 0.5,
                              "difference_interval": [-0.1, 0.1], "p_value": 0.01,
                              "p_holm": round(0.001 + number / 100, 3)}  # fmt: skip
            rows.append({**shared_fields, **comparison, "score": score,
                         "score_interval": [max(0.0, score - 0.2), min(0.9, score + 0.1)], "supervised": False,
                         "recovered": f1 / 0.6875, "recovered_interval": [0.0, 1.0], "detectable": None,
                         "detectable_corrected": None})  # fmt: skip
            answers[name] = [
                {"id": f"q{i}", "question": f"Question {i}? {HOSTILE}", "references": [f"answer {i}", "other"],
                 "prediction": f"answer {i}" if i < right else ("", f"wrong {HOSTILE}")[number % 2],
                 "f1": float(i < right), "em": float(i < right) / 2,
                 "scores": {"f1": float(i < right), "em": float(i < right) / 2}}
                for i in range(COUNT)
            ]  # fmt: skip
        rows.sort(key=lambda row: (-row["score"], row["name"]))
        groups.append({
            "group": source, "source": source, "num_samples": COUNT, "ranking": rows, "winner": rows[0]["name"],
            "verdict": f"{rows[0]['experiment']} is best. {HOSTILE}", "next": "Integrate it.", "answerable": True,
            "observations": [{"observation": "o", "holds": "yes", "meaning": "m", "action": "a"}],
            "power": {"num_samples": COUNT, "comparisons": 9, "power": 0.8, "detectable": 0.123,
                      "detectable_corrected": 0.234, "target_difference": 0.05, "samples_needed": 1234,
                      "samples_needed_corrected": 2345},
            "controls": {"clean": {"name": "baseline", "score": 0.6875, "score_interval": [0.5, 0.8]},
                         "lower": [{"name": "control_empty", "control": "empty", "score": 0.0625}]},
        })  # fmt: skip
    answers["control_empty"] = [
        {**row, "prediction": "", "scores": {"f1": 0.0, "em": 0.0}} for row in answers["baseline"]
    ]
    ladder = {
        "ladder": "scaled up", "source": "scaled", "variant": "", "dial": "factor", "unit": "", "axis": "log",
        "levels": [1.0, 117.0], "threshold": 0.34375,
        "transforms": [{"experiment": "baseline", "family": "baseline", "num_samples": COUNT,
                        "scores": [0.6875, 0.0625], "supervised": False, "anchored": True,
                        "status": "crosses", "level": 12.345,
                        "interval": [{"status": "crosses", "level": 9.0}, {"status": "beyond", "level": None}]}],
        "left_out": ["random_k3"], "reason": None,
    }  # fmt: skip
    source = {"group": "text", "num_samples": COUNT, "clean_score": 0.6875, "best": "rms_scale1.0", "best_score": 0.625,
              "auto_score": 0.6875, "share": 1.0, "share_interval": None, "recovered": True, "met": True, "clear": None,
              "auto_alone": False, "reason": None}  # fmt: skip
    sources = [source, {**source, "group": "alone", "recovered": False, "met": None, "auto_alone": True},
               {**source, "group": "nobody", "recovered": False, "met": None},
               {**source, "group": "tied", "share": None, "reason": "an empty context scores as much"}]  # fmt: skip
    auto = {"share_wanted": 0.9, "harm_allowed": 0.01, "definition": "As defined.", "bias": "Too high.", "met": True,
            "sources": sources, "recovered": 1, "reached": 1, "failed": [], "auto_alone": ["alone"],
            "harm": []}  # fmt: skip
    failed = {**results[1], "name": "broken", "experiment": "broken", "status": "failed", "error": f"k=0: {HOSTILE}"}
    control = {**results[0], "name": "control_empty", "control": "empty", "f1": 0.0, "config_hash": "empty"}
    summary = {
        "sweep": "made_up", "total_experiments": len(results) + 1, "successful": len(results), "failed": 1,
        "results": [*results, failed], "controls": [control], "command": "python run.py -m sweep=made_up",
        "budget": {"minutes": 30, "wanted": COUNT, "stopped": "All rounds are done.", "note": "Pruned.", "halvings": [
            {"round": 1, "samples": 8, "why": "Time.", "groups": [{"group": "text", "kept": [], "left_out": ["x"]}]}]},
        "analysis": {
            "metric": metric, "groups": groups, "atlas": {"tolerance": [ladder]}, "auto": auto,
            "warnings": [{"kind": "all_alike", "level": "warning", "message": HOSTILE + tail, "names": ["random_k3"],
                          "count": 1} for tail in ("", *"abcdefg")],
        },
    }  # fmt: skip
    return summary, answers


def content(metric: dict = F1) -> dict:
    summary, answers = made_up_sweep(metric)
    configs = [{"config": {"samples": 16, "embed": {"name": n, "same": 1}}, "versions": {"torch": "9"}} for n in "ab"]
    return collect(summary, answers, configs)


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
        controls = clean and {"clean": {"name": "c", "score": clean}, "lower": []}
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


def test_shared_settings_are_found():
    first = {"samples": 5, "name": "a", "deep": {"same": 1, "other": 1}, "only": 1}
    second = {"samples": 5, "name": "b", "deep": {"same": 1, "other": 2}}
    assert shared([first, second]) == {"samples": 5, "deep": {"same": 1}}
    assert shared([first]) == first
    assert shared([]) == {}


def test_the_page_describes_the_run():
    shown = content()
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


def test_the_page_holds_its_data_and_makes_no_requests():
    shown = content()
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
    assert bars.get_xlabel() == "exact match, 95% interval"
    assert [bar.get_width() for bar in bars.patches] == [row["em"] for row in group["ranking"]]
    labels = {axes.get_ylabel() for axes in figures.dials(group, order, score, 1.0).axes}
    assert "exact match" in labels and "F1" not in labels
    (heat,) = figures.matrix_figure(analysis["groups"], order, score, 1.0).axes
    assert heat.get_title(loc="left") == "exact match"


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


def browse(url: str, folder: Path, *options: str) -> tuple[str, str]:
    """Open a page in headless Chromium; return its document after drawing, and the log of the browser."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
               f"--user-data-dir={folder}", "--virtual-time-budget=4000", "--enable-logging=stderr",
               *options, url]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


class Document(HTMLParser):
    """The elements of a document that have a data-name: (section, attributes, text)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str], list[str]]] = []
        self.root: dict[str, str] = {}
        self.section, self.open, self.skip = "", [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = {key: value or "" for key, value in attrs}
        if tag == "html":
            self.root = attributes
        if attributes.get("id") in (
            "bars",
            "panels",
            "matrix",
            "tolerance",
            "rows",
            "pages",
            "how",
            "alarms",
            "verdicts",
        ):
            self.section = attributes["id"]
        self.skip = tag == "title"
        if "data-name" in attributes:
            self.found.append((self.section, attributes, []))

    def handle_endtag(self, tag):
        self.skip = False

    def handle_data(self, data):
        if self.found and not self.skip:
            self.found[-1][2].append(data)

    def of(self, section: str) -> list[tuple[dict[str, str], str]]:
        return [(attributes, " ".join(texts)) for found, attributes, texts in self.found if found == section]


# Records the width of the page and the number of loaded resources.
MEASURE = """<script>
root.dataset.overflow = String(root.scrollWidth - innerWidth); root.dataset.width = String(innerWidth);
root.dataset.loaded = String(performance.getEntriesByType("resource").length);
root.dataset.dark = String(matchMedia("(prefers-color-scheme: dark)").matches);
if (parent !== window) parent.postMessage({ ...root.dataset }, "*");
</script></body>"""


@pytest.fixture(scope="module")
def report_file(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(page(content()).replace("</body>", MEASURE), encoding="utf-8")
    return file


@pytest.mark.slow
@needs_chromium
def test_the_page_shows_the_numbers_of_the_summary(report_file, tmp_path):
    text, log = browse(report_file.as_uri() + "#source=scaled117.0", tmp_path, "--dump-dom")
    shown, (summary, _) = Document(text), made_up_sweep()
    assert "CONSOLE" not in log
    assert (shown.root["data-errors"], shown.root["data-drawn"], shown.root["data-loaded"]) == ("0", "42", "0")
    result = {r["name"]: r for r in summary["results"] if r["status"] == "ok"}
    ranking = summary["analysis"]["groups"][1]["ranking"]

    bars = shown.of("bars")
    assert [attributes["data-name"] for attributes, _ in bars] == [row["name"] for row in ranking]
    for (attributes, words), row in zip(bars, ranking, strict=True):
        numbers = [float(attributes[f"data-{key}"]) for key in ("score", "low", "high")]
        assert numbers == [row["score"], *row["score_interval"]]
        low, high = map(format_score, row["score_interval"])
        assert f"{format_score(row['score'])}  [{low}, {high}]" in words  # ties too: 1/16 is .062
        if row["difference"] is not None:
            sign = "+" if row["difference"] >= 0 else ""
            assert f"{sign}{format_score(row['difference'])} p={row['p_holm']:.3f} {row['verdict']}" in words

    panels = shown.of("panels")
    varied = [row for row in ranking if row["family"] not in ("baseline", "random_interpolation")]
    assert sorted(attributes["data-name"] for attributes, _ in panels) == sorted(row["name"] for row in varied)
    cells = shown.of("matrix")
    assert sorted(attributes["data-name"] for attributes, _ in cells) == sorted(result)
    table = shown.of("rows")
    assert len(table) == len(ranking)
    for attributes, words in [*panels, *cells, *table]:
        f1 = result[attributes["data-name"]]["f1"]
        assert float(attributes["data-score"]) == f1
        assert "data-low" in attributes or format_score(f1) in words.split()
    for attributes, words in table:
        row = next(row for row in ranking if row["name"] == attributes["data-name"])
        assert [float(attributes["data-em"]), float(attributes["data-empty"])] == [row["em"], row["empty_rate"]]
        assert format_score(row["em"]) in words.split() and f"{row['empty_rate']:.0%}" in words.split()

    assert "12.3" in text and "after 117" in text and "half of the clean F1 is .344" in text
    assert "detect a difference of .123 in one" in text and "1,234 examples" in text
    assert "half of the clean F1 on its examples" in text and "the first level, the row's own F1 on text counts" in text
    assert ". Left out, because a level or common examples are missing: random_k3" in text
    goal = " ".join(re.sub("<[^>]+>", " ", text[text.index('id="goal"') : text.index('id="table"')]).split())
    assert "Beyond the goal, auto alone reaches that share on: alone." in goal
    assert "text 16 .688 rms_scale1.0 .625 .688 100% met alone" in goal
    assert "alone 16 .688 rms_scale1.0 .625 .688 100% by auto alone nobody" in goal
    assert "100% not recovered tied" in goal and "undecided: an empty context scores as much" in goal
    alarms = text[text.index('id="alarms"') : text.index('id="verdicts"')]
    shown, folded = alarms.split("2 more warnings")
    assert (shown.count("data-kind"), folded.count("data-kind")) == (6, 2)
    assert "failed: broken" in text and "warning: " in text and "left out x" in text
    assert text.count("&lt;img src=x onerror='throw 1'&gt;") > 5  # texts of the data stay text


@pytest.mark.slow
@needs_chromium
def test_the_page_names_another_primary_metric(tmp_path):
    """F1 then is a further column of the table, and EM is not."""
    file = tmp_path / "report.html"
    file.write_text(page(content(EM)), encoding="utf-8")
    text, log = browse(file.as_uri() + "#source=text&sort=em", tmp_path / "one", "--dump-dom")
    shown, (summary, _) = Document(text), made_up_sweep(EM)
    assert "CONSOLE" not in log and shown.root["data-errors"] == "0"
    ranking = summary["analysis"]["groups"][0]["ranking"]
    assert [float(a["data-score"]) for a, _ in shown.of("bars")] == [row["em"] for row in ranking]
    assert [float(a["data-score"]) for a, _ in shown.of("rows")] == [row["em"] for row in ranking]
    body = text[text.index("<body") : text.index('<script id="data"')]
    heads = re.findall(r'data-sort="\w+">([^<]*)<', body)
    assert heads[:6] == ["configuration", "family", "exact match", "95% interval", "F1", "empty"]
    sorted_by = re.search(r'aria-sort="descending"[^>]*><button[^>]*>([^<]*)<', body)
    assert sorted_by[1] == "exact match"
    assert re.findall(r"\w*F1\w*", body) == ["F1"]  # the head of the column
    for words in (
        "nearest_k3_a0.2 on text: exact match .", "Mean exact match; the colour", '"score">exact match</option>',
        "half of the clean exact match is .344", "the row's own exact match on text", "clean exact match</th>",
        "auto's exact match</th>", "clean control exact match .688", "exact match by eps.",
    ):  # fmt: skip
        assert words in body, words


# Uses the page like a reader and records what it shows in the dataset.
ACTS = """<script>
const recorded = root.dataset, drawn = () => [...document.querySelectorAll("#rows tbody tr")];
const numbers = key => drawn().map(row => row.dataset[key]).filter(value => value !== undefined).map(Number);
const upwards = list => list.every((value, i) => !i || list[i - 1] <= value);
const change = (id, kind, value) => {
  $(id)[typeof value === "boolean" ? "checked" : "value"] = value;
  $(id).dispatchEvent(new Event(kind));
};
const sort = column => document.querySelector(`[data-sort=${column}]`).click();
const sorted = () => [...document.querySelectorAll("#rows th[aria-sort]")]
  .filter(th => th.getAttribute("aria-sort") !== "none")
  .map(th => th.textContent + " " + th.getAttribute("aria-sort")).join();
const names = () => [...document.querySelectorAll("#pages .qa:first-child tr[data-name]")]
  .map(row => row.dataset.name).join();
const ids = () => [...document.querySelectorAll("#pages .qa")].map(one => one.dataset.id).join();
recorded.first = upwards(numbers("score").reverse()); recorded.sorted1 = sorted();
document.querySelector("[data-sort=em]").focus(); sort("em");
recorded.sorted2 = sorted();
recorded.down = upwards(numbers("em").reverse());
recorded.kept = document.activeElement.dataset.sort;
sort("em"); recorded.sorted3 = sorted(); recorded.up = upwards(numbers("em"));
sort("difference");
recorded.last = drawn().slice(-4).every(row => row.dataset.difference === undefined);
recorded.nulls = upwards(numbers("difference").reverse());
sort("experiment"); recorded.words = sorted(); recorded.alphabet = drawn()[0].dataset.name;
change("find", "input", "NEAREST k5");
recorded.found = drawn().map(row => row.dataset.name).sort().join();
recorded.said = $("found").textContent;
change("find", "input", "nothing like it"); recorded.none = $("found").textContent;
change("find", "input", ""); change("family", "change", "soft_codebook"); recorded.family = drawn().length;
change("family", "change", ""); change("verdict", "change", "identity");
recorded.identity = drawn().map(row => row.dataset.name).sort().join();
change("verdict", "change", ""); change("all", "change", true);
recorded.all = $("found").textContent;
recorded.group = drawn()[0].textContent;
recorded.usual = names(); recorded.differing = ids();
change("add", "change", "random_k3@scaled117.0"); recorded.added = names();
document.querySelector("#chosen button").click(); recorded.removed = names();
$("on").click();
recorded.page2 = $("place").textContent;
$("on").click(); $("on").click();
recorded.page4 = $("place").textContent;
recorded.end = $("on").disabled;
$("back").click(); recorded.back = $("place").textContent;
state.chosen = ""; change("differ", "change", true); recorded.differ = $("place").textContent;
change("cell", "change", "recovered"); change("intervals", "change", true);
recorded.cell = document.querySelector("#matrix td[data-name=baseline]").textContent;
change("source", "change", "scaled117.0");
recorded.source = $("ranking").firstElementChild.textContent;
recorded.control = names();
recorded.link = location.hash; recorded.done = "yes";
</script>"""


@pytest.mark.slow
@needs_chromium
def test_the_page_sorts_filters_and_turns_pages_when_it_is_used(report_file, tmp_path):
    file = tmp_path / "report.html"
    file.write_text(report_file.read_text(encoding="utf-8").replace("</body>", ACTS + "</body>"), encoding="utf-8")
    text, log = browse(file.as_uri(), tmp_path / "one", "--dump-dom")
    shown = {key.removeprefix("data-"): value for key, value in Document(text).root.items()}
    assert shown.get("done") == "yes", log
    assert shown["errors"] == "0" and "CONSOLE" not in log
    assert (shown["first"], shown["sorted1"]) == ("true", "F1 descending")
    assert (shown["down"], shown["sorted2"], shown["kept"]) == ("true", "EM descending", "em")
    assert (shown["up"], shown["sorted3"]) == ("true", "EM ascending")
    assert (shown["last"], shown["nulls"]) == ("true", "true")  # rows without a comparison come last in both orders
    assert (shown["words"], shown["alphabet"]) == ("configuration ascending", "anchor_eps0.01")
    assert shown["found"] == "nearest_k5_a0.2,nearest_k5_a0.5,nearest_k5_a0.7"
    assert (shown["said"], shown["none"]) == ("3 of 21 configurations", "0 of 21 configurations")
    assert shown["family"] == "4" and shown["identity"] == "anchor_eps0.01,anchor_eps0.02,anchor_eps0.3"
    assert shown["all"] == "42 of 42 configurations" and shown["group"].startswith("text")
    best = made_up_sweep()[0]["analysis"]["groups"][0]["winner"]
    assert shown["usual"] == f"baseline,{best},control_empty"
    assert shown["added"] == f"baseline,{best},control_empty,random_k3@scaled117.0"
    assert shown["removed"] == f"{best},control_empty,random_k3@scaled117.0"
    assert (shown["page2"], shown["page4"], shown["end"]) == ("6 to 10 of 16", "16 to 16 of 16", "true")
    assert shown["back"] == "11 to 15 of 16"
    assert shown["cell"] == "1.000[.000, 1.000]"
    assert shown["source"] == "Ranking on scaled117.0 by F1"
    assert shown["control"].startswith("baseline,baseline@scaled117.0,")
    assert "source=scaled117.0" in shown["link"] and "cell=recovered" in shown["link"]
    text, _ = browse(report_file.as_uri() + shown["link"], tmp_path / "two", "--dump-dom")
    assert "Ranking on scaled117.0" in text and "Recovered: 1 is the clean control" in text


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_by_day_and_night(report_file, tmp_path, scheme):
    frame = tmp_path / "phone.html"
    frame.write_text(
        f'<body style="margin:0"><iframe src="{report_file.as_uri()}" '
        'style="border:0;width:360px;height:800px"></iframe>'
        "<script>onmessage = e => { for (const [k, v] of Object.entries(e.data)) "
        "document.documentElement.dataset[k] = v; };</script>",
        encoding="utf-8",
    )
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    text, log = browse(frame.as_uri(), tmp_path / "one", "--dump-dom", *dark)
    shown = Document(text).root
    assert "CONSOLE" not in log
    assert (shown["data-width"], shown["data-dark"], shown["data-errors"]) == ("360", str(bool(dark)).lower(), "0")
    assert float(shown["data-overflow"]) <= 0
    picture = tmp_path / "phone.png"
    browse(frame.as_uri(), tmp_path / "two", f"--screenshot={picture}", "--window-size=500,800", *dark)
    image = matplotlib.image.imread(picture)
    ground = (DARK if dark else LIGHT)["ground"]
    assert [round(float(part) * 255) for part in image[4, 4, :3]] == [int(ground[i : i + 2], 16) for i in (1, 3, 5)]


@pytest.mark.slow
@needs_chromium
def test_the_browser_check_detects_requests(report_file, tmp_path):
    file = tmp_path / "report.html"
    planted = '<img src="https://example.invalid/picture.png"></header>'
    file.write_text(report_file.read_text(encoding="utf-8").replace("</header>", planted), encoding="utf-8")
    _, log = browse(file.as_uri(), tmp_path / "one", "--dump-dom")
    assert "CONSOLE" in log and "example.invalid" in log


@pytest.mark.slow
@needs_chromium
def test_a_sweep_without_success_has_a_report_too(tmp_path):
    summary, _ = made_up_sweep()
    analysis = summary["analysis"] | {"groups": [], "warnings": [], "atlas": None, "auto": None}
    failed = {**summary, "results": summary["results"][-1:], "controls": [], "budget": None, "total_experiments": 1,
              "successful": 0, "analysis": analysis}  # fmt: skip
    path = write_report(tmp_path, failed)
    text, log = browse(path.as_uri(), tmp_path / "one", "--dump-dom")
    assert "CONSOLE" not in log and Document(text).root["data-errors"] == "0"
    assert "No configuration succeeded" in text and "failed: broken" in text


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
