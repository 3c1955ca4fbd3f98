"""Prompts in folders and shards: the plan, rows without those before, and ids that occur twice."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from kat.data import files
from kat.data.files import file_rows, row_ranges
from kat.data.prompt_files import PromptShard, plan_shards, prompt_digests, prompts_sha256, require_unique_ids
from kat.data.prompts import read_prompts
from latentwire.harness.assets import file_sha256
from latentwire.harness.errors import UserError


def row(number: int) -> dict[str, str]:
    return {"id": f"é{number}", "prompt": f"Why is {number} so?"}


def lines(count: int, start: int = 0) -> str:
    """Return rows as JSONL with an empty line before every third one."""
    return "".join(("\n \n" if n % 3 == 0 else "") + json.dumps(row(n), ensure_ascii=False) + "\n"
                   for n in range(start, start + count))  # fmt: skip


def write(path: Path, count: int, start: int = 0) -> Path:
    """Write rows in the format that the ending of the path means."""
    if path.suffix == ".gz":
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.write(lines(count, start))
    elif path.suffix == ".parquet":
        table = pa.Table.from_pylist([row(n) for n in range(start, start + count)])
        parquet.write_table(table, path, row_group_size=4)
    elif path.suffix == ".json":
        path.write_text(json.dumps([row(n) for n in range(start, start + count)]))
    else:
        path.write_text("\ufeff" + lines(count, start), encoding="utf-8")
    return path


def ids(shard: PromptShard) -> list[str]:
    return [prompt.id for prompt in shard.read()]


ENDINGS = ["jsonl", "jsonl.gz", "json", "parquet"]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("most", [1, 3, 4, 10, 11])
def test_shards_hold_each_row_once_and_in_order(tmp_path, ending, most):
    path = write(tmp_path / f"p.{ending}", 10)
    shards = plan_shards(path, most)
    assert [shard.name for shard in shards] == [f"{n:05d}" for n in range(-(-10 // most))]
    assert [name for shard in shards for name in ids(shard)] == [f"é{n}" for n in range(10)]
    assert [len(shard) for shard in shards[:-1]] == [min(most, 10)] * (len(shards) - 1)
    assert sum(map(len, shards)) == 10


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_range_has_the_places_of_the_whole_file(tmp_path, ending):
    path = write(tmp_path / f"p.{ending}", 10)
    whole = list(file_rows(path))
    assert [place for part in row_ranges(path, 3) for place, _ in file_rows(path, "path", part)] == [
        p for p, _ in whole
    ]
    if ending == "jsonl":
        assert [place for place, _ in whole][:4] == ["line 3", "line 4", "line 5", "line 8"]


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_planning_and_skipping_parse_no_earlier_row(tmp_path, monkeypatch, ending):
    path, parsed = write(tmp_path / f"p.{ending}", 10), []
    real = json.loads
    monkeypatch.setattr(files.json, "loads", lambda text: parsed.append(text) or real(text))
    shards = plan_shards(path, 4)
    assert not parsed
    assert (ids(shards[2]), len(parsed)) == (["é8", "é9"], 2)


def test_parquet_is_read_from_the_row_group_to_the_last_row(tmp_path, monkeypatch):
    path, groups, batches = write(tmp_path / "p.parquet", 11), [], []
    real = parquet.ParquetFile.iter_batches

    def iter_batches(self, size, wanted):
        groups.append(wanted)
        for batch in real(self, 1, wanted):
            batches.append(len(batch))
            yield batch

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", iter_batches)
    assert [name for shard in plan_shards(path, 5) for name in ids(shard)] == [f"é{n}" for n in range(11)]
    assert groups == [[0, 1], [1, 2], [2]]  # row groups of four
    batches.clear()
    (first, *_) = plan_shards(path, 1)
    assert (ids(first), len(batches) <= 2) == (["é0"], True)  # of four in the row group


def test_files_of_a_folder_are_read_in_name_order(tmp_path, capfd):
    for name, start in (("b.jsonl.gz", 5), ("c.parquet", 8), ("a.json", 0), ("d.jsonl", 12)):
        write(tmp_path / name, {"a.json": 5, "b.jsonl.gz": 3}.get(name, 4), start)
    (tmp_path / ".hidden.jsonl").write_text("broken")
    (tmp_path / "README.md").write_text("About")
    (tmp_path / "more.jsonl").mkdir()
    prompts = read_prompts(tmp_path)
    assert capfd.readouterr().err.count("README.md, more.jsonl") == 1
    assert [prompt.id for prompt in prompts] == [f"é{n}" for n in range(16)]
    assert [prompt.source for prompt in prompts[4:6]] == ["a", "b"]
    shards = plan_shards(tmp_path, 4)
    assert [len(shard) for shard in shards] == [4, 1, 3, 4, 4]  # no shard has rows of two files
    assert [name for shard in shards for name in ids(shard)] == [prompt.id for prompt in prompts]


def test_an_unusable_folder_is_rejected_with_the_file(tmp_path):
    (tmp_path / "README.md").write_text("About")
    with pytest.raises(UserError, match=r"the folder has no file with rows; give .*\.jsonl, .*\.parquet"):
        read_prompts(tmp_path)
    write(tmp_path / "a.jsonl", 2)
    (tmp_path / "b.jsonl").write_text("\n\n")
    for use in (read_prompts, lambda path: plan_shards(path, 10)):
        with pytest.raises(UserError, match=r"b\.jsonl: the file has no rows"):
            use(tmp_path)
    (tmp_path / "b.jsonl").write_text('{"prompt": 3}')
    with pytest.raises(UserError, match=r"b\.jsonl, line 1: prompt: a turn is neither"):
        plan_shards(tmp_path, 10)[1].read()
    parquet.write_table(pa.Table.from_pylist([], pa.schema([("prompt", pa.string())])), tmp_path / "b.parquet")
    (tmp_path / "b.jsonl").unlink()
    with pytest.raises(UserError, match=r"b\.parquet: the file has no rows"):
        read_prompts(tmp_path)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(UserError, match=r"b\.parquet: a damaged Parquet file"):
        plan_shards(tmp_path, 10)
    packed = write(tmp_path / "c.jsonl.gz", 50)
    packed.write_bytes(packed.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"c\.jsonl\.gz: a damaged gzip file"):
        plan_shards(packed, 10)


def test_digests_change_with_content_and_names(tmp_path):
    one = write(tmp_path / "a.jsonl", 2)
    assert prompt_digests(tmp_path) == prompt_digests(one) == {"a.jsonl": file_sha256(one)}
    assert prompts_sha256(one) == file_sha256(one)
    found = [prompts_sha256(tmp_path)]
    write(tmp_path / "b.jsonl", 1, 2)
    found.append(prompts_sha256(tmp_path))
    (tmp_path / "b.jsonl").rename(tmp_path / "c.jsonl")
    found.append(prompts_sha256(tmp_path))
    assert len(set(found)) == 3


def test_an_id_in_two_shards_is_named_with_both_places(tmp_path):
    write(tmp_path / "a.jsonl", 7)
    write(tmp_path / "b.parquet", 7, 7)
    shards = plan_shards(tmp_path, 3)
    by_name = {shard.name: ids(shard) for shard in shards}
    require_unique_ids(shards, lambda name: reversed(by_name[name]))
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write(json.dumps(row(10)))
    shards = plan_shards(tmp_path, 3)
    by_name = {shard.name: ids(shard) for shard in shards}
    expected = r"b\.parquet, row 3: has the id é10, as .*a\.jsonl, line 14 has; remove one of the rows"
    with pytest.raises(UserError, match=expected):
        require_unique_ids(shards, lambda name: by_name[name])
    with pytest.raises(UserError, match=expected):
        read_prompts(tmp_path)


def test_an_id_twice_in_a_shard_is_named_with_both_lines(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "x"}\n{"prompt": "y"}\n\n{"prompt": " x "}')
    (shard,) = plan_shards(tmp_path / "a.jsonl", 3)
    with pytest.raises(UserError, match=r"a\.jsonl, line 4: has the id [0-9a-f]{16}, as line 1 has"):
        shard.read()
