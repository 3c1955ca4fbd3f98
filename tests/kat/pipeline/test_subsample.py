"""The task subsample on folders of shards, and the prompts that it writes for a training run."""

from __future__ import annotations

from pathlib import Path

import pytest

from kat.data.heldout import held_out
from kat.data.prompts import read_prompts
from latentwire.harness.assets import file_sha256
from tests.helpers.files import read_json, read_rows, write_rows
from tests.helpers.weights import write_weight_folder

pytestmark = pytest.mark.usefixtures("one_thread")
N = 60
IDS = [f"p{row:03d}" for row in range(N)]
WEIGHTS = [(1 + row % 7) / 240 for row in range(N)]
GROUPS = [row // 3 if row < 30 else row for row in range(N)]
BUDGET = "budget=20"


def prompt_row(name: str) -> dict:
    return {"id": name, "prompt": f"prompt {name}", "answer": f"answer {name}"}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working folder with the same weights in shards and in a file, and the same prompts in shards and in a file."""
    monkeypatch.chdir(tmp_path)
    kat = tmp_path / "outputs" / "kat"
    write_weight_folder(kat / "weights", WEIGHTS, [IDS[:25], IDS[25:50], IDS[50:]], GROUPS, gates=gates(0.1))
    numbers = zip(IDS, WEIGHTS, GROUPS, strict=True)
    write_rows(
        kat / "weights.jsonl",
        [{"id": name, "density": 1.0, "weight": weight, "group": group} for name, weight, group in numbers],
    )
    rows = [prompt_row(name) for name in [*IDS, "long"]][::-1]
    write_rows(kat / "prompts_all.jsonl", rows)
    (tmp_path / "prompts").mkdir()
    for number in range(3):
        write_rows(tmp_path / "prompts" / f"{number}.jsonl", rows[number * 21 : number * 21 + 21])
    return kat


def gates(crowd_ratio: float) -> dict:
    return {"local_share": 1.0, "centre_correlation": 0.0, "crowd_ratio": crowd_ratio, "crowd_ratio_mean": crowd_ratio,
            "stability": 1.0, "agreement": None, "weights_apart": None}  # fmt: skip


SHARDED = ("weights_file=weights", "prompts_file=prompts")


def drawn(cli, *arguments: str, out: str = "ids.txt") -> list[str]:
    status, _, said = cli("task=subsample", *arguments, f"out=./{out}")
    assert status == 0, said
    return Path(out).read_text().splitlines()


@pytest.mark.parametrize("arm", ["density", "uniform", "reversed", "shuffled", "deduplicated"])
def test_shards_draw_as_a_file_of_the_same_weights(folder, cli, arm):
    arm = f"sampler={arm}"
    found = drawn(cli, BUDGET, arm, *SHARDED)
    assert found == drawn(cli, BUDGET, arm, out="file.txt") and len(set(found)) == 20
    assert found != drawn(cli, BUDGET, arm, *SHARDED, "seed=1", out="other.txt")


@pytest.mark.parametrize("sharded", [SHARDED, ()])
def test_prompts_out_has_the_drawn_and_the_held_out_prompts(folder, cli, sharded):
    """The held-out ones are the first in the order of their ids, so every arm is evaluated with the same prompts."""
    first = sorted(name for name in IDS if held_out(name, 0.15))[:4]
    for arm in ("density", "uniform"):
        names = drawn(cli, BUDGET, f"sampler={arm}", *sharded, "prompts_out=drawn.jsonl", "eval_prompts=4")
        rows = read_rows(folder / "drawn.jsonl")
        assert len(rows) == len({*names, *first}) > 20
        assert {row["id"] for row in rows} == {*names, *first}
        assert [row["id"] for row in rows] == sorted((row["id"] for row in rows), reverse=True)  # as in the prompts
        prompts = read_prompts(folder / "drawn.jsonl")
        assert sorted(prompt.id for prompt in prompts if held_out(prompt.id, 0.15))[:4] == first
        assert [prompt.columns["answer"] for prompt in prompts] == [f"answer {prompt.id}" for prompt in prompts]
    record = read_json(folder / "drawn.json")
    assert (record["sampler"], record["budget"], record["prompts"]) == ("uniform", 20, len(rows))
    assert record["prompts_sha256"] == file_sha256(folder / "drawn.jsonl")
    source = folder / ("weights/weights.npy" if sharded else "weights.jsonl")
    assert record["weights_sha256"] == file_sha256(source)


def test_weights_that_feed_crowds_write_no_training_prompts(folder, cli):
    write_weight_folder(folder / "weights", WEIGHTS, [IDS], gates=gates(2.0))
    wanted = ("prompts_out=drawn.jsonl", *SHARDED)
    assert len(drawn(cli, BUDGET, *SHARDED)) == 20
    assert len(drawn(cli, BUDGET, "sampler=uniform", *wanted)) == 20
    status, _, said = cli("task=subsample", BUDGET, *wanted)
    assert status == 1 and "2.00 times as often as uniformly" in said, said
    assert len(drawn(cli, BUDGET, *wanted, "force_weights=true")) == 20
    assert read_json(folder / "drawn.json")["force_weights"] is True


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["prompts_out=drawn.txt"], "prompts_out=drawn.txt: is written as JSONL"),
        (["prompts_out=sampled_ids.txt"], "prompts_out=sampled_ids.txt: would overwrite"),
        (["prompts_out=prompts_all.jsonl", "prompts_file=prompts_all.jsonl"], "would overwrite prompts_file"),
        (["prompts_out=./prompts/3.jsonl"], "prompts_out=./prompts/3.jsonl: is inside prompts_file"),
        (["prompts_out=drawn.jsonl", "eval_prompts=-1"], "eval_prompts=-1: must be at least 0"),
        (["prompts_out=drawn.jsonl", "eval_prompts=1.5"], "eval_prompts=1.5: expected a whole number"),
        (["prompts_out=drawn.jsonl", "held_out=1"], "held_out=1.0: must be a share"),
        (["budget=61"], "budget=61: 60 prompts of"),
        (["sampler=difficulty"], "sampler=difficulty: its weights follow the rewards of a training"),
        (["weights_file=absent"], "has no density.json"),
    ],
)
def test_settings_that_do_not_fit_shards_are_refused(folder, cli, arguments, reason):
    status, _, said = cli("task=subsample", *SHARDED, *arguments)
    assert status == 1 and reason in said, said
    assert not (folder / "sampled_ids.txt").exists() and not (folder / "drawn.jsonl").exists()


def test_missing_and_repeated_prompts_are_refused(folder, cli):
    wanted = ("task=subsample", "budget=59", "prompts_out=drawn.jsonl", "weights_file=weights")
    rows = [prompt_row(name) for name in IDS]
    write_rows("few.jsonl", rows[:50])
    status, _, said = cli(*wanted, "prompts_file=few.jsonl")
    assert status == 1 and "ids are only in the first" in said and "run task=density again" in said, said
    write_rows("prompts/3.jsonl", rows)
    status, _, said = cli(*wanted, "prompts_file=prompts")
    assert status == 1 and "has the id p" in said and "remove one of the rows" in said, said
    assert not (folder / "drawn.jsonl").exists() and not (folder / "sampled_ids.txt").exists()


def test_a_drawn_id_with_a_line_break_is_refused(folder, cli):
    write_weight_folder(folder / "weights", [1.0, 1.0], [["a", "b\nc"]])
    status, _, said = cli("task=subsample", "budget=2", "sampler=uniform", *SHARDED)
    assert status == 1 and "has a line break" in said, said


def test_a_damaged_shard_is_named(folder, cli):
    (folder / "weights" / "00001.prompts.parquet").write_bytes(b"PAR1")
    status, _, said = cli("task=subsample", BUDGET, *SHARDED)
    assert status == 1 and "shard 00001 is missing, damaged" in said and "run task=density again" in said, said
