"""How the project writes: no word that a reader has to decode, and short names of tests."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT, TESTS
from tests.helpers.prose import faults, files, long_sentences

PLACES = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LOG.md", "run.py", "train.py"]
PLACES += ["benchmarks", "conf", "docs", "examples", "hydra_plugins", "kat", "latentwire", "tests"]
PROSE = [file for place in PLACES for file in files(ROOT / place)]
# Real uses of a word that STYLE rules out elsewhere: the file, and the phrase as it stands there.
ALLOWED: dict[str, set[str]] = {
    "tests/helpers/prose.py": {"mend", "told", "beside", "asked", "whatever", "wherever", "lies", "lie", "lay"},
    "tests/test_prose.py": {"told", "lies", "is no number", "hangs on", "whatever", "asked"},
}
LONG_ALLOWED = 0  # sentences of more than 25 words in README and docs


@pytest.mark.slow
@pytest.mark.parametrize("path", PROSE, ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_has_no_banned_word(path):
    allowed = ALLOWED.get(str(path.relative_to(ROOT)), set())
    assert [(line, phrase) for line, phrase in faults(path) if phrase.lower() not in allowed] == []


def test_pages_have_no_long_sentence():
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = [(page.name, *where) for page in pages for where in long_sentences(page)]
    assert len(found) <= LONG_ALLOWED, found


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(TESTS.rglob("test_*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_names_of_tests_are_short(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert [name for name in names if name.startswith("test_") and len(name) > 60] == []


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.py", '"""Made here.\n\nWhat it is told."""\n', [(3, "told")]),
        ("b.py", "x = 1  # it lies in y\n", [(1, "lies")]),
        ("c.py", 'y = f"{1} is no number"\n', [(1, "is no number")]),
        ("d.md", "It hangs on `told`.\n```\ntold\n```\n", [(1, "hangs on")]),
        ("e.yaml", "k: told  # whatever comes\n", [(1, "whatever")]),
        ("f.py", 'key = "asked"\n', []),
    ],
)
def test_banned_words_are_found_only_in_prose(tmp_path: Path, name, text, expected):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert faults(path) == expected
