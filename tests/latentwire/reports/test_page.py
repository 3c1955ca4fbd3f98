"""The page of a sweep in a browser without network: its numbers, its use, and its size on a phone."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import pytest

from latentwire.reports.html import page, write_report
from latentwire.reports.panels import DARK, LIGHT
from latentwire.stats.formatting import format_score
from tests.helpers.made_up_sweep import EM, made_up_sweep, page_content
from tests.helpers.page_measure import MEASURE

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


@pytest.fixture(scope="module")
def report_file(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(page(page_content()).replace("</body>", MEASURE), encoding="utf-8")
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
        fitted = row["cross_fit"] or row  # the best row shows what it has on passages that did not choose it
        mark = "" if row["cross_fit"] is None else "\u2020"
        numbers = [float(attributes[f"data-{key}"]) for key in ("score", "low", "high")]
        assert numbers == [fitted["score"], *fitted["score_interval"]]
        low, high = map(format_score, fitted["score_interval"])
        assert f"{format_score(fitted['score'])} {mark} [{low}, {high}]" in words  # ties too: 1/16 is .062
        if row["difference"] is not None:
            sign = "+" if fitted["difference"] >= 0 else ""
            assert f"{sign}{format_score(fitted['difference'])} p={row['p_holm']:.3f} {row['verdict']}" in words
    assert [row["cross_fit"] is not None for row in ranking] == [True, *[False] * 20]
    quoted = ranking[0]["cross_fit"]
    hint = f"{ranking[0]['experiment']} on scaled117.0: F1 {format_score(quoted['score'])} ["
    assert text.count(hint) == 1  # of the bar
    how = "\u2020 The best of 19: chosen on half of the passages and scored on the other half, both ways."
    assert text.count(how) == 1
    assert "12 passages, resampled as a whole (design effect 1.25)" in text
    verdicts = text[text.index('id="verdicts"') : text.index('id="ranking"')]
    assert verdicts.count("resampled as a whole") == 1  # 16 passages of 16 examples need no word
    across = "At least 1 of 2 sources have a repair that is better than their baseline, with 95% confidence"
    assert across in verdicts

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
    assert "The goal is met: auto reaches 90% of the clean F1 on 1 of the 1 sources" in goal
    assert "of clean 90%? auto's F1 of clean 90%? goal" in goal
    assert "text 16 .688 rms_scale1.0 .625 91% met .688 100% met met alone" in goal
    assert "alone 16 .688 rms_scale1.0 .625 80% not met .688 100% met by auto alone nobody" in goal
    assert "80% not met not recovered tied 16 .688 rms_scale1.0 an empty context scores as much" in goal
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
    file.write_text(page(page_content(EM)), encoding="utf-8")
    text, log = browse(file.as_uri() + "#source=text&sort=em", tmp_path / "one", "--dump-dom")
    shown, (summary, _) = Document(text), made_up_sweep(EM)
    assert "CONSOLE" not in log and shown.root["data-errors"] == "0"
    ranking = summary["analysis"]["groups"][0]["ranking"]
    fitted = ranking[0]["cross_fit"]["score"]
    assert [float(a["data-score"]) for a, _ in shown.of("bars")] == [fitted, *(row["em"] for row in ranking[1:])]
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
