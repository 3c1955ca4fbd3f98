"""task=retrieve and task=project read embeddings in a folder as they read them from a file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.helpers.files import read_json, read_rows, write_rows
from tests.helpers.programs import start

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
MODEL = ["model=tiny_random", "device=cpu", "dtype=float32"]
SUBJECTS = ("rivers", "kings", "planets", "songs", "ships", "birds")
FILE = ["embeddings_file=./one.pt", "weights_file=./one.jsonl"]
FOLDER = ["embeddings_file=./embeddings", "weights_file=./weights"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with prompts, their embeddings in a file and in shards, and the weights of both."""
    folder, here = tmp_path_factory.mktemp("made"), Path.cwd()
    os.chdir(folder)
    try:
        Path("many").mkdir()
        texts = [f"Which {SUBJECTS[n % 6]} number {n}? " + "word " * (n % 7) for n in range(40)]
        rows = [{"id": f"id{n}", "prompt": text, "source": f"set{n % 2}"} for n, text in enumerate(texts)]
        write_rows("many/a.jsonl", rows)
        for names in (FILE, FOLDER):
            for task in (["task=embed", *MODEL, "shard_rows=15"], ["task=density", "sampler.k=3"]):
                command = [word for word in task if names is FOLDER or not word.startswith("shard_rows")]
                files = names if task[0] == "task=density" else names[:1]
                started = start("run", *command, "prompts_file=many", *files, folder=folder)
                assert started.wait() == [0], started.told()
    finally:
        os.chdir(here)
    return folder


def test_the_same_prompts_are_nearest_in_both(made, cli, monkeypatch):
    monkeypatch.chdir(made)
    found = []
    for names in (FILE, FOLDER):
        command = ["task=retrieve", *MODEL, "prompts_file=many", "query=Which kings number 7?", "top_k=4", names[0]]
        status, printed, err = cli(*command)
        assert status == 0, err
        found.append([line.split() for line in printed.splitlines()])
    one, many = found
    assert [row[2] for row in one] == [row[2] for row in many] and len(one) == 4
    assert [float(row[1]) for row in one] == pytest.approx([float(row[1]) for row in many], abs=1e-3)
    assert [row[3:] for row in one] == [row[3:] for row in many]


def test_a_map_of_shards_has_the_weights_of_a_sample(made, cli, monkeypatch):
    monkeypatch.chdir(made)
    status, _, err = cli("task=project", *FOLDER, "points=25", "out=./map.json", "prompts_file=many")
    assert status == 0 and "25 of 40 prompts, chosen at random" in err
    points = read_json("map.json")["points"]
    weights = {row["id"]: row for row in read_rows("one.jsonl")}
    prompts = {row["id"]: row for row in read_rows("many/a.jsonl")}
    assert len({point["id"] for point in points}) == 25
    for point in points:
        assert point["weight"] == pytest.approx(weights[point["id"]]["weight"], rel=0.05)
        assert point["source"] == prompts[point["id"]]["source"]
        assert point["text"] == prompts[point["id"]]["prompt"].strip()
    whole = cli("task=project", *FOLDER, "out=./whole.json", "prompts_file=many")
    assert whole[0] == 0 and "chosen at random" not in whole[2]
    assert [point["id"] for point in read_json("whole.json")["points"]] == [f"id{n}" for n in range(40)]


def test_weights_of_other_embeddings_are_refused(made, cli, monkeypatch):
    monkeypatch.chdir(made)
    record = Path("weights/density.json")
    before = record.read_text()
    record.write_text(json.dumps({**read_json(record), "embeddings_sha256": "other"}))
    try:
        status, _, err = cli("task=project", *FOLDER, "prompts_file=many", "out=./map2.json")
    finally:
        record.write_text(before)
    assert status == 1 and "was made from other embeddings than" in err and "Traceback" not in err


@pytest.mark.parametrize("points", ["0", "none", "1.5"])
def test_points_are_a_whole_number(made, cli, monkeypatch, points):
    monkeypatch.chdir(made)
    status, _, err = cli("task=project", *FOLDER, f"points={points}", "prompts_file=many", "out=./map3.json")
    assert status == 1 and f"points={points}: must be a whole number above 0" in err
