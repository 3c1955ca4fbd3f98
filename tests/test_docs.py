"""The documentation: the site builds without a warning and without network, and every link of a page has a target."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.helpers.paths import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("[be]*/README.md")])
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def load(path: Path) -> ModuleType:
    """Import a file of docs/, which is not a package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def links(text: str) -> list[str]:
    """Return the targets of the links and pictures of a page, those in code left out."""
    return LINK.findall(CODE.sub("", text))


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    without_blocks = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *$", without_blocks, flags=re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        same = [name, *(f"{name}-{number}" for number in range(1, 100))]
        found.add(next(each for each in same if each not in found))
    return found


def broken(page: Path, text: str) -> Iterator[str]:
    """Yield the links of a page that lead nowhere in the repository."""
    for link in links(text):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        target = (page.parent / path).resolve() if path else page
        if not (target.exists() and target.is_relative_to(ROOT)):
            yield f"{link}: no such file"
        elif anchor and target.suffix == ".md":
            there = text if target == page else target.read_text(encoding="utf-8")
            if anchor not in anchors(there):
                yield f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_has_a_target(page):
    assert list(broken(page, page.read_text(encoding="utf-8"))) == []


def test_a_broken_link_is_found():
    text = (
        "# One `two` three\n[a](index.md) [b](no.md) [c](#one-two-three) [d](#four) `[e](no.md)` [f](https://x.org)\n"
    )
    assert list(broken(ROOT / "docs" / "index.md", text)) == ["no.md: no such file", "#four: no such heading"]


def test_links_of_included_pages_lead_to_pages():
    """A link from a file outside docs/ leads to the page of the site; a folder has no page."""
    conf = load(ROOT / "docs" / "conf.py")
    text = "[a](../docs/grpo.md#loss) [b](../LOG.md) [c](../conf/) [d](../run.py) `[e](../conf/)` [f](https://x.org)"
    expected = "[a](grpo.md#loss) [b](log.md) c [d](../run.py) `[e](../conf/)` [f](https://x.org)"
    assert conf.site_links(text, ROOT / "examples") == expected


LOADED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*?\bsrc=[\"']([^\"']+)|<link\b[^>]*?\bhref=[\"']([^\"']+)|"
    r"url\(\s*[\"']?([^\"')]+)|@import\s+[\"']([^\"']+)"
)


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path):
    """Sphinx reports no warning (-W -n), and no page or style sheet requests anything from another host."""
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "--keep-going", "-q", "-d", str(tmp_path / "cache")]
    built = tmp_path / "html"
    done = subprocess.run([*command, "docs", str(built)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    pages = [path for path in built.rglob("*") if path.suffix in (".html", ".css") and "_downloads" not in path.parts]
    assert len(pages) > len(list((ROOT / "docs").glob("*.md")))
    loaded = {"".join(found) for path in pages for found in LOADED.findall(path.read_text(encoding="utf-8"))}
    assert loaded
    assert [target for target in loaded if re.match(r"(?:https?:)?//", target)] == []


def test_the_configuration_page_is_current():
    script = ROOT / "docs" / "scripts" / "configuration.py"
    done = subprocess.run([sys.executable, str(script), "--check"], cwd=ROOT.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


CONFIG = """# @package _global_
# What it is.
# python run.py x=y
rate: 0.5  # share, 0 | 1
path: "a # b"
x:
  name: y
  dials: {rate: 1}
  deep:
    list: [1, 2]  # two numbers
  splits:  # names
    train: t
hydra: {mode: RUN}
"""


def test_settings_of_a_config_file_are_read_with_their_comments(tmp_path):
    """A mapping with a comment is one setting, others hold settings; a # inside quotes does not start a comment."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "y.yaml").write_text(CONFIG)
    script = load(ROOT / "docs" / "scripts" / "configuration.py")
    file = script.read(tmp_path / "x" / "y.yaml", tmp_path)
    assert (file.group, file.name, file.about) == ("x", "y", ["What it is.", "python run.py x=y"])
    assert [(s.name, s.default, s.comment) for s in file.settings] == [
        ("rate", "0.5", "share, 0 | 1"),
        ("path", '"a # b"', None),
        ("x.deep.list", "[1, 2]", "two numbers"),
        ("x.splits", "1 entry", "names"),
    ]
    assert script.undocumented([file]) == ["conf/x/y.yaml: path has no comment"]
    with pytest.raises(ValueError, match="path has no comment"):
        script.page(tmp_path)


def test_the_architecture_page_is_current():
    script = ROOT / "docs" / "scripts" / "architecture.py"
    done = subprocess.run([sys.executable, str(script), "--check"], cwd=ROOT.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def write_package(root: Path, modules: dict[str, str]) -> None:
    """Write modules by path, with the packages that they need."""
    for name, text in modules.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)


def test_rooms_and_their_imports_are_read_from_the_source(tmp_path):
    """Imports within a room and of other packages give no arrow; a module next to the rooms is a room."""
    write_package(tmp_path, {
        "latentwire/records.py": "import torch\n",
        "latentwire/lm/models.py": "from latentwire import records\nfrom latentwire.lm import tiny\n",
        "latentwire/lm/tiny.py": "def f():\n    import latentwire.records\n",
        "kat/grpo/task.py": "from latentwire.lm.models import load\nfrom kat.data import pairs\n",
        "kat/data/pairs.py": "",
    })  # fmt: skip
    script = load(ROOT / "docs" / "scripts" / "architecture.py")
    rooms = {package: script.rooms_of(tmp_path, package) for package in ("latentwire", "kat")}
    assert {package: list(found) for package, found in rooms.items()} == {
        "latentwire": ["lm", "records.py"], "kat": ["data", "grpo"],
    }  # fmt: skip
    assert script.edges_of(tmp_path, rooms) == {
        ("latentwire/lm", "latentwire/records.py"), ("kat/grpo", "latentwire/lm"), ("kat/grpo", "kat/data"),
    }  # fmt: skip
    drawn = script.picture(tmp_path)
    assert drawn == script.picture(tmp_path)
    assert str(tmp_path) not in drawn and drawn.count(">records.py<") == 1


def test_implied_arrows_are_left_out_and_cycles_set_apart():
    script = load(ROOT / "docs" / "scripts" / "architecture.py")
    chain = {("a", "b"), ("b", "c"), ("a", "c")}
    assert script.reduced(chain) == {("a", "b"), ("b", "c")}
    assert script.layers_of("abc", chain) == {"a": 2, "b": 1, "c": 0}
    loop = {("x", "y"), ("y", "x")}
    assert script.split_cycles(chain | loop) == (chain, loop)
    assert script.split_cycles(chain | {("c", "a")}) == (set(), chain | {("c", "a")})


def test_boxes_of_a_layer_do_not_overlap():
    script = load(ROOT / "docs" / "scripts" / "architecture.py")
    nodes = list("abcdefgh")
    found = script.lay_out(nodes, {("a", "b"), ("a", "h"), ("b", "c"), ("b", "d"), ("b", "e"), ("c", "h"), ("f", "h")})
    for layer in found.layers:
        places = [found.x[node] for node in layer]
        gaps = [right - left for left, right in itertools.pairwise(places)]
        assert all(gap >= (script.DUMMY_WIDTH + script.BOX_WIDTH) / 2 for gap in gaps), layer
    assert found.ways["a", "h"][0] == "a" and found.ways["a", "h"][-1] == "h"


RECORDED = """# @package _global_
# Does it help? Yes.
#   Command   python run.py experiment=x   (anywhere)
#   Score     F1 .6 [.5, .7],
#             n = 400
{}
"""


def test_an_opening_comment_becomes_sentences_items_and_commands(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "x.yaml").write_text(RECORDED)
    (tmp_path / "run.yaml").write_text("# What\n# it is.\n# python run.py\ndtype: ${oc.env:DTYPE,auto}  # a | b\n")
    text = load(ROOT / "docs" / "scripts" / "configuration.py").page(tmp_path)
    assert "What it is.\n\n```bash\npython run.py\n```" in text
    assert "| `dtype` | `auto` | a \\| b; environment variable `DTYPE` |" in text
    items = ["Command**: `python run.py experiment=x` (anywhere)", "Score**: F1 .6 [.5, .7], n = 400"]
    assert "Does it help? Yes.\n\n" + "\n".join(f"- **{item}" for item in items) in text


IMPORT = re.compile(r"^ *from ((?:kat|latentwire)[\w.]*) import ([\w, ]+)", flags=re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_that_pages_import_exist(page):
    for module, names in IMPORT.findall(page.read_text(encoding="utf-8")):
        loaded = importlib.import_module(module)
        assert [name for name in re.split(r",\s*", names.strip()) if not hasattr(loaded, name)] == [], module
