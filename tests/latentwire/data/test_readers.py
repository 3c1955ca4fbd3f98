"""Readers of data sets: registered by name, with an identity that follows their data and their module."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

from latentwire.data.examples import READERS, DataSpec, Example, Part, load_data, register_reader
from latentwire.harness.errors import UserError
from tests.helpers.plugins import forgotten_afterwards

FOX = "The red fox sat near the old mill."
LINES = f"context,question,answers\n{FOX},Who sat there?,fox\n{FOX},Where?,mill\n"


@pytest.fixture(autouse=True)
def registered(tmp_path) -> Iterator[None]:
    """Forget what a test registers."""
    with forgotten_afterwards(tmp_path):
        yield


def table(spec: DataSpec) -> list[Part]:
    """Return the rows of CSV files."""
    return [
        (path.name, [(f"row {number}", row) for number, row in enumerate(csv.DictReader(path.open()), 1)])
        for path in spec.files()
    ]


def of(path: Path, **fields: str) -> DataSpec:
    return DataSpec("mine", "table", path=str(path), **fields)


def test_a_reader_gives_places_and_rows(tmp_path):
    register_reader("table")(table)
    path, shots = tmp_path / "a.csv", tmp_path / "b.csv"
    path.write_text(LINES)
    data = load_data(of(path))
    assert data.train == data.validation
    assert data.validation[1] == Example("row 2", FOX, "Where?", ("mill",))
    shots.write_text(LINES.replace("Where?", "What?"))
    assert load_data(of(path, shots_path=str(shots))).train[1].question == "What?"
    path.write_text(LINES.replace("mill\n", "wolf\n"))
    with pytest.raises(UserError, match=r"a\.csv, row 2 \(id row 2\): the answer 'wolf' is not in its context"):
        load_data(of(path))
    with pytest.raises(UserError, match="data=table: no path given; add path=FILE"):
        load_data(DataSpec("mine", "table"))


def test_the_identity_follows_files_fields_and_the_module(tmp_path):
    register_reader("table")(table)
    (tmp_path / "a.csv").write_text(LINES)
    (tmp_path / "same.csv").write_text(LINES)
    before = of(tmp_path / "a.csv").identity()
    assert list(before["plugins"]) == ["data=table"]  # this file is the plugin
    assert of(tmp_path / "same.csv").identity() == before
    assert of(tmp_path / "a.csv", split="test").identity() != before
    assert of(tmp_path / "a.csv", shots_path=str(tmp_path / "same.csv")).identity() != before
    (tmp_path / "a.csv").write_text(LINES + "\n")
    assert of(tmp_path / "a.csv").identity() != before
    for name in READERS:
        if name != "table":
            assert READERS.source_digest(name) is None


def test_data_without_files_bring_their_own_identity():
    @register_reader("made_up", identity=lambda spec: {"seed": spec.revision})
    def made_up(spec: DataSpec) -> list[Part]:
        rows = [{"context": FOX, "question": spec.revision, "answers": "fox"}]
        return [("made up", zip(["only"], rows, strict=True))]

    spec = DataSpec("mine", "made_up", revision="7")
    assert load_data(spec).validation == [Example("only", FOX, "7", ("fox",))]
    assert spec.identity()["seed"] == "7"


@pytest.mark.parametrize("count", [0, 3])
def test_a_reader_gives_one_part_or_two(count):
    rows = [("row 1", {"context": FOX, "question": "Who?", "answers": "fox"})]
    register_reader("table")(lambda spec: [("part", list(rows))] * count)
    with pytest.raises(UserError, match=rf"data=mine: the reader gives {count} parts; return one, or shots and"):
        load_data(of(Path("x")))


def test_a_bug_of_a_reader_names_its_module():
    def broken(spec: DataSpec) -> list[Part]:
        raise KeyError("passage")

    register_reader("table")(broken)
    message = (
        r"data=mine: the reader raises KeyError \('passage'\); fix tests\.latentwire\.data\.test_readers\..*broken"
    )
    with pytest.raises(UserError, match=message):
        load_data(of(Path("x")))


def test_a_bug_of_this_project_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("latentwire.data.examples.question_rows", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load_data(DataSpec("short_qa", "short_qa"))
