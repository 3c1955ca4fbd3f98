"""The report of sweep=latent_norm: places in the figure, numbers in the tables and in the text."""

from __future__ import annotations

import csv
import json
import re
from xml.etree import ElementTree

import pytest

from latentwire.analysis.latent_norm import MEASURES, NormAnalysis
from latentwire.reports.latent_norm import norm_figure, norm_page, norm_tables, render_norm, write_norm_report


def point(factor: float, f1: float) -> dict:
    return {"factor": factor, "f1": f1, "interval": (f1 - 0.1, f1 + 0.1)}


def found(kind: str = "free") -> NormAnalysis:
    """Return made-up findings: tokens and one kind, at three factors."""
    factors = [0.1, 1.0, 10.0]
    curves = [
        {"kind": name, "seeds": seeds, "over": over, "length": length, "tolerated": (0.1, 1.0),
         "points": [point(factor, f1) for factor, f1 in zip(factors, scores, strict=True)]}
        for name, seeds, over, length, scores in (
            ("tokens", 1, "passages", 1.0, (0.2, 0.7, 0.1)), (kind, 3, "seeds", 8.0, (0.3, 0.4, 0.2))
        )
    ]  # fmt: skip
    layer = {"kind": "tokens", "factor": 1.0, "rms_interval": (1.0, 3.0), "passages": 4}
    return {
        "factors": factors, "questions": 6, "passages": 4, "empty": point(1.0, 0.1), "curves": curves,
        "verdict": {"verdict": "undecided", "sentence": "Nothing is shown.", "reference": kind, "differences": []},
        "layers": [
            {**layer, "layer": 0, "rms": 2.0, "turn": None, "turn_interval": None, "from_input": None,
             "from_input_interval": None},
            {**layer, "layer": 1, "rms": 2.5, "turn": 0.5, "turn_interval": (0.4, 0.6), "from_input": 0.25,
             "from_input_interval": (0.2, 0.3)},
        ],
        "nearness": [
            {"kind": kind, "answers": "right", "questions": 9, "passages": 3, "random_cosine": 0.2,
             "means": dict.fromkeys(MEASURES, 0.5), "intervals": dict.fromkeys(MEASURES, (0.25, 0.75))}
        ],
    }  # type: ignore[typeddict-item]  # fmt: skip


def test_the_figure_places_f1_on_a_logarithmic_axis():
    root = ElementTree.fromstring(norm_figure(found(), standalone=True))
    space = "{http://www.w3.org/2000/svg}"
    groups = {group.get("data-kind"): group for group in root.iter(f"{space}g")}
    assert list(groups) == ["tokens", "free"]
    lines = {}
    for kind, group in groups.items():
        text = group.find(f"{space}polyline").get("points")
        lines[kind] = [tuple(map(float, pair.split(","))) for pair in text.split()]
        assert len(list(group.iter(f"{space}line"))) == 3  # an interval at each factor
    (first, tokens), (middle, high), (last, low) = lines["tokens"]
    assert middle - first == pytest.approx(last - middle)  # factors of 10 are equally far apart
    assert [x for x, _ in lines["free"]] == [first, middle, last]
    assert (tokens - high) / (low - high) == pytest.approx((0.7 - 0.2) / (0.7 - 0.1), abs=0.01)
    titles = [title.text for title in groups["free"].iter(f"{space}title")]
    assert titles[1] == "free, factor 1: .400 [.300, .500]"
    dashes = {group.find(f"{space}polyline").get("stroke-dasharray") for group in groups.values()}
    assert len(dashes) == 2  # lines differ in more than their colours


def test_the_figure_has_its_colours_only_as_a_file_of_its_own():
    assert "--line-0: #" in norm_figure(found(), standalone=True)
    assert "--line-0: #" not in norm_figure(found(), standalone=False)
    names = set(re.findall(r"var\(--([\w-]+)\)", norm_figure(found(), standalone=True)))
    assert all(f"--{name}: #" in norm_figure(found(), standalone=True) for name in names) and "line-1" in names


def test_names_of_kinds_are_never_markup():
    page = norm_page(found("<script>alert(1)</script>"))
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    content = re.search(r'type="application/json">(.*?)</script>', page, flags=re.DOTALL)[1]
    assert json.loads(content)["verdict"]["sentence"] == "Nothing is shown."
    assert "{{" not in page


def test_tables_have_a_column_for_each_number(tmp_path):
    path = write_norm_report(tmp_path, found())
    assert path.read_text(encoding="utf-8") == norm_page(found())
    for name, (columns, rows) in norm_tables(found()).items():
        assert {len(row) for row in rows} == {len(columns)}
        with (tmp_path / f"{name}.csv").open(encoding="utf-8") as file:
            assert len(list(csv.reader(file))) == len(rows) + 1
    with (tmp_path / "residual_stream.csv").open(encoding="utf-8") as file:
        start, after = csv.DictReader(file)
    assert (start["rms"], start["cosine_before"]) == ("2.0", "")
    assert (after["rms_high"], after["cosine_before_low"], after["cosine_input"]) == ("3.0", "0.4", "0.25")
    with (tmp_path / "f1_by_factor.csv").open(encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    assert (last["kind"], last["factor"], last["f1"], last["interval_over"]) == ("free", "10.0", "0.2", "seeds")


def test_the_text_has_every_score_and_the_conclusion():
    text = render_norm(found())
    assert "n = 6 questions about 4 passages" in text
    assert re.search(r"^tokens +\.200 +\.700 +\.100  0\.1 to 1$", text, flags=re.MULTILINE)
    assert "nearest token in the own group .500 [.250, .750]" in text
    assert text.endswith("Nothing is shown.")
