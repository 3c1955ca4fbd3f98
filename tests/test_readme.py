"""README and the atlas page: lengths, links, paths, and tables that equal their recorded files."""

from __future__ import annotations

import csv
import importlib.util
import re
import sys

import pytest

from tests.helpers.paths import ROOT

DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")  # targets inside the repository


def markdown_table(page: str, head: str) -> list[list[str]]:
    """Return the rows of the table whose first line starts with `head`, that line included, rule excluded."""
    lines = page.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(head))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return [rows[0], *rows[2:]]


def read_csv(name: str) -> list[list[str]]:
    """Return the rows of a recorded file, its header included."""
    with (DOCS / "results" / name).open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_readme_fits_on_a_screen():
    """README has at most 150 lines, and no code block holds more than 35."""
    assert len(README.splitlines()) <= 150
    blocks = re.findall(r"^```\w*\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    assert max(len(block.splitlines()) for block in blocks) <= 35


def test_readme_links_every_page():
    """README links each page below docs/ except the site's index and its copies of root files."""
    linked = set(LINK.findall(README))
    pages = {f"docs/{path.name}" for path in DOCS.glob("*.md")}
    copies = {f"docs/{name}.md" for name in ("index", "benchmarks", "changelog", "contributing", "examples", "log")}
    assert pages - copies <= linked


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "LOG.md", "benchmarks/README.md"])
def test_links_of_root_pages_lead_somewhere(page):
    """Each relative link of a page outside docs/ names a file or folder that exists."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert [target for target in LINK.findall(text) if not ((ROOT / page).parent / target).exists()] == []


def test_reading_order_names_existing_files():
    """Each file that "Read the code in this order" names exists."""
    section = README.split("## Read the code in this order")[1].split("```")[0]
    paths = re.findall(r"`([\w/]+\.(?:py|yaml))`", section)
    assert len(paths) >= 10
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_atlas_page_shows_the_recorded_matrix():
    """The matrix of docs/atlas.md equals atlas_f1.csv, apart from the stars of significance."""
    page = (DOCS / "atlas.md").read_text(encoding="utf-8")
    shown = markdown_table(page, "| source | baseline")
    recorded = read_csv("atlas_f1.csv")
    assert shown[0] == recorded[0]
    assert len(recorded) == 31
    for row, own in zip(shown[1:], recorded[1:], strict=True):
        assert [row[0], *(cell.rstrip("*") for cell in row[1:])] == [own[0], *(f1.lstrip("0") for f1 in own[1:])]


def test_atlas_page_shows_the_recorded_tolerances():
    """Each tolerance of docs/atlas.md, with its interval, is a row of atlas_tolerance.csv."""
    page = (DOCS / "atlas.md").read_text(encoding="utf-8")
    head, *rows = markdown_table(page, "| half of the clean F1 at")
    recorded = {(ladder, transform): tuple(rest) for ladder, transform, *rest in read_csv("atlas_tolerance.csv")[1:]}
    assert len(recorded) == len(rows) * (len(head) - 1)
    for row in rows:
        ladder = row[0].split(" (")[0]
        for transform, cell in zip(head[1:], row[1:], strict=True):
            level, low, high = recorded[ladder, transform]
            assert cell == (f"{level} [{low}, {high}]" if low else level)


def test_picture_draws_each_recorded_source():
    """The panels of the picture have a point for each recorded source, at the F1 of the recorded file."""
    spec = importlib.util.spec_from_file_location("draw_atlas", DOCS / "scripts" / "draw_atlas.py")
    assert spec is not None and spec.loader is not None
    draw_atlas = importlib.util.module_from_spec(spec)
    sys.modules["draw_atlas"] = draw_atlas  # dataclasses look their module up
    spec.loader.exec_module(draw_atlas)
    matrix = draw_atlas.read_matrix(DOCS / "results" / "atlas_f1.csv")
    tolerances = draw_atlas.read_tolerances(DOCS / "results" / "atlas_tolerance.csv")
    axes = draw_atlas.draw(matrix, tolerances).axes
    colour = draw_atlas.COLOURS["auto"]
    drawn = [
        float(y) for ax in axes for line in ax.lines
        if line.get_color() == colour and line.get_marker() == "^" for y in line.get_ydata()
    ]  # fmt: skip
    starts = sum(panel.clean is not None for panel in draw_atlas.PANELS)  # text stands at the clean level of these
    distorted = [cells["auto"] for source, cells in matrix.items() if source != "text"]
    assert sorted(drawn) == sorted([*distorted, *[matrix["text"]["auto"]] * starts])


def test_readme_lists_every_experiment():
    """README names each recorded experiment of conf/experiment/, and no other."""
    recorded = {path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")} - {"none"}
    section = README.split("holds the recorded experiments")[1].split("\n[")[0]
    assert set(re.findall(r"`(\w+)`", section)) == recorded
