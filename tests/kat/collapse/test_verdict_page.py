"""The task verdict over a folder of runs, and its page: the same content in both forms, escaped, without network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from kat.collapse import records
from kat.collapse.markdown import escaped, verdict_page_markdown
from kat.collapse.page import colours_of, verdict_page_html
from kat.collapse.records import CollapseResult
from kat.collapse.task import verdict_of_folder
from tests.helpers.collapse_runs import STRENGTHS, Experiment, write_experiment
from tests.helpers.files import read_json, read_rows, write_rows
from tests.helpers.page_measure import MEASURE
from tests.helpers.records import mismatches

HOSTILE = "</script><img src=x onerror='throw 1'> | `*_[x](y)_*` & \u2028 end"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
CONTROLS = "collapse.control_seeds=[50,51]"


def with_hostile_texts(folder: Path) -> None:
    """Put markup into the completions of each run's last evaluation and into the prompts."""
    for path in sorted(folder.glob("run_*/completions.jsonl")):
        rows = read_rows(path)
        for row in rows[-16:]:
            row["completions"][0]["text"] = HOSTILE
        write_rows(path, rows)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("experiments") / "one"
    write_experiment(Experiment(folder, {**STRENGTHS, "density": 1.4}, seeds=range(4), control_seeds=(50, 51)))
    with_hostile_texts(folder)
    return folder


@pytest.fixture(scope="module")
def result(written) -> CollapseResult:
    """Return the verdict of the task on the written runs; the files are next to the folder."""
    settings = OmegaConf.create({"arm": None, "control_seeds": [50, 51], "min_collapse": 1 / 3})
    return verdict_of_folder(written, settings, 0, written.parent / "out")


@pytest.mark.slow
def test_the_known_effects_are_found(result):
    """The density arm collapses less, shuffled as much as uniform; both positive controls are seen."""
    assert result["answer"] == "reduces" and result["measure"] == "entropy_valid"
    assert [check["passed"] for check in result["gate"]] == [True, True, True, None]
    found = {one["arm"]: one for one in result["primary"]["differences"]}
    assert found["density"]["difference"] > 0.1 > abs(found["shuffled"]["difference"])
    assert result["arms"] == ["uniform", "density", "shuffled", "entropy", "novelty"]
    assert [one["at"] for one in result["equal"]] == ["quality", "kl"]
    assert result["seeds"] == [0, 1, 2, 3] and result["control_seeds"] == [50, 51]
    assert {(row["measure"], row["group"]) for row in result["measures"]} >= {
        ("entropy_valid", "rare"), ("quality", "common"), ("topics_covered", "all"), ("distinct_k", "all"),
        ("utility_k", "all"), ("distinct_k_good", "all"), ("seed_similarity", "all"), ("within/vendi", "all"),
        ("across/self_bleu", "all"),
    }  # fmt: skip
    assert len(result["topics"]) == 4 and [one["arm"] for one in result["slopes"]] == ["density"]


@pytest.mark.slow
def test_the_verdict_is_as_its_record_states(result, written):
    met: set[type] = set()
    assert mismatches(CollapseResult, read_json(written.parent / "out" / "verdict.json"), met) == []
    defined = {one for one in vars(records).values()
               if hasattr(one, "__required_keys__") and one.__module__ == records.__name__}  # fmt: skip
    assert {kind.__name__ for kind in defined - met} == {"EvaluatedPrompt", "LedgerRow", "TruthRow", "FalsePositives"}


@pytest.mark.slow
def test_both_forms_have_the_same_sections_tables_and_charts(result, written):
    out = written.parent / "out"
    text, html = (out / "verdict.md").read_text(), (out / "verdict.html").read_text()
    assert verdict_page_markdown(result) == text and verdict_page_html(result) == html
    (block,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', html, flags=re.DOTALL)
    data = json.loads(block)
    assert data["sections"] == json.loads(json.dumps(result["sections"])) and data["sentence"] == result["sentence"]
    assert re.findall(r"^## (.*)$", text, flags=re.MULTILINE) == [section["title"] for section in data["sections"]]
    charts = [block["name"] for section in data["sections"] for block in section["blocks"]
              if block["kind"] in ("chart", "forest")]  # fmt: skip
    assert re.findall(r"\(figures/(\w+)\.png\)", text) == charts and len(charts) == 6
    assert all((out / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in charts)
    rows = [row for section in data["sections"] for block in section["blocks"] if block["kind"] == "table"
            for row in block["rows"]]  # fmt: skip
    plain = unescape(re.sub(r"\\(.)", r"\1", text))
    assert len(rows) > 60 and all(f"| {' | '.join(row)} |" in plain for row in rows)


@pytest.mark.slow
def test_texts_of_models_are_never_markup(result, written):
    text = (written.parent / "out" / "verdict.md").read_text()
    assert "<img" not in re.sub(r"\\<", "", text) and "\u2028" not in text
    assert escaped(HOSTILE) == (r"\</script\>\<img src=x onerror='throw 1'\> \| \`\*\_\[x\](y)\_\*\` \& end")
    html = (written.parent / "out" / "verdict.html").read_text()
    assert html.count("</script>") == 2 and "{{" not in html
    template = html.split('{"answer"')[0] + html.split("</script>", 1)[1]
    assert not re.search(r"innerHTML|insertAdjacent|document\.write|\bsrc\s*=|@import|url\(|fetch\(", template)
    assert "default-src 'none'" in html


@pytest.mark.slow
def test_twenty_prompts_are_shown_at_most_by_arm(result):
    (shown,) = [block for section in result["sections"] for block in section["blocks"] if block["kind"] == "answers"]
    assert shown["arms"] == ["base model", *result["arms"]]
    assert 10 <= len(shown["prompts"]) <= 20 and {one["group"] for one in shown["prompts"]} == {"rare", "common"}
    for prompt in shown["prompts"]:
        assert set(prompt["answers"]) == set(shown["arms"])
        for answers in prompt["answers"].values():
            assert sum(one["count"] for one in answers) == 10


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_enough_contrast(scheme):
    colours = colours_of(scheme)

    def contrast(name: str, ground: str) -> float:
        bright, dim = sorted((luminance(colours[name]), luminance(colours[ground])), reverse=True)
        return (bright + 0.05) / (dim + 0.05)

    for ground in ("ground", "panel"):
        assert contrast("ink", ground) > 7 and contrast("soft", ground) > 4.5
    for name in colours:
        if name.startswith("arm-"):
            assert contrast(name, "ground") > 3, name
    assert contrast("good", "ground") > 4.5 and contrast("bad", "ground") > 4.5


FRAME = """<html><body><script>addEventListener("message", event => {
for (const [name, value] of Object.entries(event.data)) document.documentElement.dataset[name] = value; });</script>
<iframe src="page.html" style="width:360px;height:600px"></iframe></body></html>"""


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (360, "light")])
def test_the_page_is_drawn_on_phones_and_in_the_dark(written, result, tmp_path, width, scheme):
    html = (written.parent / "out" / "verdict.html").read_text()
    (tmp_path / "page.html").write_text(html.replace("</body>", MEASURE))
    (tmp_path / "frame.html").write_text(FRAME)
    page = tmp_path / ("frame.html" if width == 360 else "page.html")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
               f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=4000", "--window-size=1200,900",
               *(["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []),
               "--dump-dom", page.as_uri()]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    root = dict(re.findall(r'data-(\w+)="([^"]*)"', shown.split("<head>", 1)[0]))
    expected = {"errors": "0", "loaded": "0", "drawn": str(len(result["sections"]))}
    assert {name: root[name] for name in expected} == expected
    assert int(root["overflow"]) <= 0 and int(root["width"]) == width and root["dark"] == str(scheme == "dark").lower()
    if width != 360:
        assert result["sentence"] in unescape(shown) and shown.count("<figure data-chart=") == 6
        assert HOSTILE.split("|")[0].strip() in unescape(shown.split('id="data"', 1)[0])


@pytest.mark.slow
def test_the_command_writes_the_page_into_the_folder(written, tmp_path, cli):
    folder = Path(shutil.copytree(written, tmp_path / "one"))
    status, printed, said = cli("task=verdict", f"folder={folder}", CONTROLS)
    assert status == 0, said
    found = read_json(folder / "verdict.json")
    assert printed.strip() == found["sentence"] and found["folder"] == str(folder)
    assert {"verdict.md", "verdict.html", "figures"} <= {path.name for path in folder.iterdir()}
    pages = {name: (folder / name).read_bytes() for name in ("verdict.md", "verdict.html", "verdict.json")}
    assert cli("task=verdict", f"folder={folder}", CONTROLS)[0] == 0
    assert {name: (folder / name).read_bytes() for name in pages} == pages  # again, with the same bytes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "folder, reports: neither is given; write folder=FOLDER"),
        (["folder=x", "reports=[y]"], "folder, reports: both are given"),
        (["folder=nowhere"], "folder=nowhere: no such folder"),
        (["folder=x", "collapse.arm=uniform"], "collapse.arm=uniform: is the baseline or a positive control"),
        (["folder=x", "collapse.margin_share=1.5"], "collapse.margin_share=1.5: must be above 0 and below 1"),
        (["folder=x", "collapse.control_seeds=3"], "collapse.control_seeds=3: expected"),
    ],
)
def test_wrong_settings_are_one_line_errors(cli, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, _, said = cli("task=verdict", *arguments)
    assert status == 1 and message in said and "Traceback" not in said


@pytest.mark.slow
def test_an_unknown_measure_is_refused(written, cli):
    status, _, said = cli("task=verdict", f"folder={written}", "collapse.measure=quality")
    assert status == 1 and "collapse.measure=quality: must be a measure of these runs with a direction; one of" in said


@pytest.mark.slow
def test_prompts_without_columns_use_classes_of_answers(tmp_path, cli):
    """Without topics and valid answers the deciding measure is distinct-k, and rare topics are not compared."""
    folder = tmp_path / "plain"
    write_experiment(Experiment(folder, dict(STRENGTHS), seeds=range(3), prompts=8, valid_column=False))
    assert cli("task=verdict", f"folder={folder}")[0] == 0
    found = read_json(folder / "verdict.json")
    assert found["measure"] == "distinct_k_good" and found["topics"] == [] and found["margins"] == []
    assert all(row["group"] == "all" for row in found["measures"])
    limits = " ".join(found["limits"])
    assert "Valid answers are unknown" in limits and "no known topics" in limits and "No margin is known" in limits
