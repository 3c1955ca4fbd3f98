"""task=embed into a folder of shards: the rows, shared work, kills, damage, and what it rejects."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from kat.data.prompt_files import PromptShard
from kat.embedding.pooling import HiddenEmbedder
from kat.embedding.sharded import ShardedEmbeddings
from kat.embedding.store import load_embeddings
from kat.pipeline import embed_shards
from latentwire.harness import launching
from latentwire.harness.errors import UserError
from tests.helpers.files import read_json, write_rows
from tests.helpers.programs import start

pytestmark = pytest.mark.usefixtures("one_thread")
OUT = Path("embeddings")
SMALL = ["task=embed", "model=tiny_random", "device=cpu", "dtype=float32", "batch_tokens=200", "prompts_file=many"]
FOLDER = [*SMALL, "out=./embeddings", "shard_rows=4"]
NAMES = [f"{number:05d}" for number in range(6)]


def text(number: int) -> str:
    return f"Question {number}: " + "what follows after this, and why, " * (number % 5) + "?"


def write_prompts(**changes: str) -> None:
    """Write 11 and 10 prompts into two files of the folder many, with other texts by id."""
    rows = [{"id": f"id{n}", "prompt": text(n), "text": changes.get(f"id{n}", text(n))} for n in range(21)]
    Path("many").mkdir(exist_ok=True)
    write_rows("many/a.jsonl", rows[:11])
    write_rows("many/b.jsonl", rows[11:])


def contents(folder: Path) -> dict[str, bytes]:
    """Return the rows and prompts of all shards, by file."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".npy", ".parquet")}


def inodes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder with prompts and embeddings that one process made without an interruption."""
    folder = tmp_path_factory.mktemp("whole")
    here = Path.cwd()
    os.chdir(folder)
    try:
        write_prompts()
        started = start("run", *FOLDER, folder=folder)
        assert started.wait() == [0], started.told()
        assert "prompts/s" in started.told()
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def copied(whole, cli, tmp_path) -> Path:
    """The working folder, with the prompts and their embeddings."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    return tmp_path / "embeddings"


@pytest.mark.float_path
def test_shards_have_the_rows_of_the_single_file(copied, cli):
    assert cli(*SMALL, "out=./one.pt")[0] == 0
    ids, emb = load_embeddings("one.pt")
    found = ShardedEmbeddings.open(OUT)
    assert (len(found), found.dim, found.names, found.record["sizes"]) == (21, 64, NAMES, [4, 4, 3, 4, 4, 2])
    tables = [found.prompts(name) for name in found.names]
    assert [name for table in tables for name in table["id"].to_pylist()] == ids == [f"id{n}" for n in range(21)]
    assert tables[2]["source"].to_pylist() == ["a"] * 3 and tables[3]["source"].to_pylist() == ["b"] * 4
    assert tables[3]["digest"][0].as_py() == hashlib.sha256(text(11).encode()).hexdigest()[:8]
    rows = torch.cat([block for name in found.names for block in found.blocks(name)])
    assert found.rows("00000").dtype == np.float16
    assert (rows - emb).abs().max() < 1e-3
    assert torch.equal(found.take(np.array([20, 3, 11])), rows[[20, 3, 11]])


def test_the_record_describes_prompts_and_embedder(whole):
    record = read_json(whole / "embeddings" / "embeddings.json")
    digests = {
        name: hashlib.sha256((whole / "many" / name).read_bytes()).hexdigest() for name in ("a.jsonl", "b.jsonl")
    }
    assert record["prompts"] == digests
    assert (record["embedder"]["embedder"], record["model"], record["too_long"]) == ("hidden", "tiny_random", 0)
    assert (record["max_tokens"], record["shard_rows"], record["n"]) == (4096, 4, 21)
    assert record["tokens"] == sum(
        read_json(whole / "embeddings" / f"{name}.json")["facts"]["tokens"] for name in NAMES
    )
    assert sorted(path.name for path in (whole / "embeddings").iterdir()) == sorted(
        ["embeddings.json", *(f"{name}.{end}" for name in NAMES for end in ("json", "emb.npy", "prompts.parquet"))]
    )


def test_a_finished_folder_is_kept(copied, cli):
    before = inodes(copied)
    for settings in ([], ["batch_tokens=99"], ["shard_rows=7"]):
        status, _, err = cli(*FOLDER, *settings) if not settings else cli(*given(settings))
        assert (status, "finished before" in err) == (0, True), err
    assert inodes(copied) == before


def given(settings: list[str]) -> list[str]:
    """Return the command with other values of some settings."""
    names = {setting.split("=")[0] for setting in settings}
    return [*(word for word in FOLDER if word.split("=")[0] not in names), *settings]


def test_only_the_damaged_shard_is_made_again(copied, cli, capfd):
    """Its file has the right size and one wrong byte; another shard has lost its record."""
    before, made = inodes(copied), contents(copied)
    content = bytearray(made["00003.emb.npy"])
    content[-5] ^= 1
    (copied / "00003.emb.npy").write_bytes(content)
    (copied / "00001.json").unlink()
    with pytest.raises(UserError, match=r"shard 00001, 00003 is missing or damaged; run task=embed again"):
        ShardedEmbeddings.open(OUT)
    capfd.readouterr()
    status, _, err = cli(*FOLDER)
    assert (status, err.count("00003.emb.npy is damaged; shard 00003 counts as missing")) == (0, 1), err
    assert "4 of 6 shards are finished from before" in err
    after = inodes(copied)
    assert {name[:5] for name in before if before[name] != after[name]} == {"00001", "00003"}
    assert contents(copied) == made


def slowly() -> None:
    """Make every batch take a while, so that a test can end the process in a shard."""
    real = HiddenEmbedder.embed

    def embed(self, texts):
        time.sleep(0.05)
        return real(self, texts)

    HiddenEmbedder.embed = embed


def stopping() -> None:
    """Stop after the first shard until the file go exists, a minute at most."""
    real, deadline = HiddenEmbedder.embed, time.monotonic() + 60

    def embed(self, texts):
        while list(OUT.glob("0*.json")) and not Path("go").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        return real(self, texts)

    HiddenEmbedder.embed = embed


@pytest.mark.slow
def test_a_killed_run_loses_only_the_shard_in_work(whole, cli, tmp_path):
    """Both processes are killed, and a temporary file stays behind; two others finish the rest."""
    write_prompts()
    started = start("run", *FOLDER, folder=tmp_path, ranks=2, before=slowly)
    started.kill_when(lambda: len(list(OUT.glob("0*.json"))) >= 2, pause=0.03)
    (OUT / ".00005.emb.npy.x.tmp").write_text("left by a killed process")
    assert not (OUT / "embeddings.json").exists()
    before = inodes(OUT)
    finished = {path.stem for path in OUT.glob("0*.json")}
    with pytest.raises(UserError, match=r"has no embeddings\.json, so its shards are not complete"):
        ShardedEmbeddings.open(OUT)
    started = start("run", *FOLDER, folder=tmp_path, ranks=2)
    assert started.wait() == [0, 0], started.told()
    after = inodes(OUT)
    assert finished < set(NAMES) and finished
    assert all(before[name] == after[name] for name in before if name[:5] in finished)
    assert contents(OUT) == contents(whole / "embeddings")
    assert not list(OUT.glob(".*")) and not (OUT / "claims").exists()


@pytest.mark.slow
def test_two_workers_write_what_one_writes(whole, cli, tmp_path, monkeypatch):
    """Shards of the second worker are those that this process did not embed."""
    write_prompts()
    own, real = [], PromptShard.read

    def read(self):
        own.append(self.name)
        deadline = time.monotonic() + 60
        while len(own) == 2 and len(list(OUT.glob("0*.json"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)  # until the other worker has done one
        return real(self)

    monkeypatch.setattr(PromptShard, "read", read)
    status, _, err = cli(*FOLDER, "workers=2")
    assert (status, "21/21" in err) == (0, True), err
    assert 0 < len(own) < 6
    assert contents(OUT) == contents(whole / "embeddings")


def test_workers_get_the_job_without_force(copied, cli, monkeypatch):
    """A second process that removed the records of shards would undo the work of the first one."""
    got = []

    def started_workers(run, cfg, workers):
        got.append((run, cfg.force, workers, len(list(OUT.glob("0*.json")))))
        return contextlib.nullcontext()

    monkeypatch.setattr(embed_shards, "started_workers", started_workers)
    assert cli(*FOLDER, "force=true", "workers=3")[0] == 0
    assert got == [("kat.pipeline.embed:embed", False, 3, 0)]


@pytest.mark.slow
def test_workers_of_a_launcher_share_the_shards(copied, cli, tmp_path):
    """With force=true the shards are removed once, and each worker has a log of its own."""
    made, before = contents(copied), inodes(copied)
    status, _, err = cli("-m", *FOLDER, "hydra/launcher=joblib", "workers=2", "force=true")
    assert (status, "jobs: 2, workers: 2" in err) == (0, True), err
    after = inodes(OUT)
    assert not [name for name in made if before[name] == after[name]]
    assert contents(OUT) == made
    logs = [path.read_text() for path in sorted(Path("outputs/kat/workers").glob("*.log"))]
    assert len(logs) == 2 and all("in 6 shards" in log or "finished before" in log for log in logs), logs


def test_each_worker_of_a_launcher_gets_every_job_without_force(copied, cli, monkeypatch):
    """The parent has removed the records of the first folder; the second folder is new."""
    got = []

    def launch_in_workers(launcher, context, config, session, jobs):
        got.append([(Path(job.config.out).name, job.config.force, job.config.workers) for job in jobs])
        return [None] * len(jobs)

    monkeypatch.setattr(launching, "launch_in_workers", launch_in_workers)
    given = [*SMALL, "shard_rows=4", "out=./embeddings,./new", "hydra/launcher=joblib", "workers=3", "force=true"]
    status, _, err = cli("-m", *given)
    assert status == 0, err
    assert got == [3 * [("embeddings", False, 1), ("new", False, 1)]]
    assert not list(OUT.glob("*.json")) and len(list(OUT.glob("*.npy"))) == 6


@pytest.mark.slow
def test_workers_of_a_launcher_divide_files_by_embedder(copied, cli):
    """Each file is the work of one worker, which starts no other processes."""
    ids = [f"id{n}" for n in range(21)]
    given = [*SMALL, "embedder=hidden,logits", "out=./of_${embedder.name}.pt", "hydra/launcher=joblib", "workers=2"]
    status, _, err = cli("-m", *given)
    assert (status, "jobs: 2, workers: 2" in err) == (0, True), err
    assert [load_embeddings(f"of_{name}.pt")[0] for name in ("hidden", "logits")] == [ids, ids]


def test_other_embeddings_in_work_are_left_alone(whole, cli, tmp_path):
    """Neither force=true nor another embedder removes or moves the shards that a process makes."""
    write_prompts()
    started = start("run", *FOLDER, folder=tmp_path, before=stopping)
    while not list(OUT.glob("0*.json")):
        assert started.running(), started.told()
        time.sleep(0.001)
    owner = f"{started.processes[0].pid} on {socket.gethostname()}, since "
    for settings in (["force=true"], ["embedder=logits"]):
        status, _, err = cli(*FOLDER, *settings)
        assert (status, f"error: embeddings: process {owner}" in err) == (1, True), err
        assert "; wait until it ends, or choose another folder" in err
    Path("go").touch()
    assert started.wait() == [0], started.told()
    assert contents(OUT) == contents(whole / "embeddings")
    assert not (OUT / "claims").exists() and not Path("replaced").exists()


def test_long_prompts_are_counted_over_all_shards(cli):
    """A shard without rows is not listed, and no id is lost."""
    write_prompts(**{f"id{n}": "word " * 5000 for n in (2, 8, 9, 10)})
    status, _, err = cli(*FOLDER)
    assert (status, "4 of 21 prompts have more than the 4096 tokens" in err) == (0, True), err
    found = ShardedEmbeddings.open(OUT)
    assert (found.names, found.record["sizes"]) == (["00000", "00001", "00003", "00004", "00005"], [3, 4, 4, 4, 2])
    assert (found.record["too_long"], read_json(OUT / "00002.json")["facts"]["too_long"]) == (4, ["id8", "id9", "id10"])
    assert found.prompts("00000")["id"].to_pylist() == ["id0", "id1", "id3"]
    assert "finished before" in cli(*FOLDER)[2]


def test_prompts_that_no_shard_can_embed_are_refused(cli, monkeypatch):
    write_prompts()
    monkeypatch.setattr(HiddenEmbedder, "lengths", lambda self, texts: [5000] * len(texts))
    assert "none of the 21 prompts fits into the embedder's 4096 tokens" in cli(*FOLDER)[2]
    shutil.rmtree(OUT)
    monkeypatch.setattr(HiddenEmbedder, "lengths", lambda self, texts: [0, *[9] * (len(texts) - 1)])
    status, _, err = cli(*FOLDER)
    assert (status, "6 prompts have no tokens for this tokenizer; remove them" in err) == (1, True), err
    assert not (OUT / "embeddings.json").exists()


def test_an_id_in_two_files_stops_the_task_at_the_end(cli):
    write_prompts()
    with Path("many/b.jsonl").open("a") as file:
        file.write(json.dumps({"id": "id1", "prompt": "again"}))
    status, _, err = cli(*FOLDER)
    assert (status, "b.jsonl, line 11: has the id id1, as many/a.jsonl, line 2 has" in err) == (1, True), err
    assert len(list(OUT.glob("*.npy"))) == 6 and not (OUT / "embeddings.json").exists()


def test_prompts_that_change_during_the_run_are_refused(cli, monkeypatch):
    write_prompts()
    real = PromptShard.read

    def read(self):
        prompts = real(self)
        write_prompts(id4="another text")
        return prompts

    monkeypatch.setattr(PromptShard, "read", read)
    status, _, err = cli(*FOLDER)
    assert (status, "prompts_file=many: has changed since this run began; run it again" in err) == (1, True), err
    assert not list(OUT.glob("*.npy"))


def test_other_embeddings_are_moved_aside_and_force_replaces(copied, cli):
    made, key = contents(copied), read_json(copied / "embeddings.json")["key"]
    status, _, err = cli(*FOLDER, "embedder=logits")
    assert (status, "contained other embeddings; they are now in replaced" in err) == (0, True), err
    assert contents(Path("replaced") / f"embeddings.{key}") == made
    assert read_json(OUT / "embeddings.json")["embedder"]["embedder"] == "logits"
    (OUT / "embeddings.json").unlink()  # as after a kill
    before = inodes(OUT)
    assert "6 of 6 shards are finished" in cli(*FOLDER, "embedder=logits")[2]
    assert "finished before" not in cli(*FOLDER, "embedder=logits", "force=true")[2]
    after = inodes(OUT)
    assert not [name for name in before if before[name] == after[name]]
    (OUT / "embeddings.json").unlink()
    assert "they are now in replaced" in cli(*FOLDER)[2]
    assert contents(OUT) == made
    assert sorted(path.name for path in Path.cwd().iterdir() if path.name[0] == ".") == []


def test_changed_prompts_are_embedded_again(copied, cli):
    made = contents(copied)
    write_prompts(id4="another text")
    status, _, err = cli(*FOLDER)
    assert (status, "they are now in replaced" in err) == (0, True), err
    assert {name for name, content in contents(copied).items() if content != made[name]} == {
        "00001.emb.npy",
        "00001.prompts.parquet",
    }


def test_a_full_disk_stops_the_task_with_a_remedy(cli, monkeypatch):
    write_prompts()
    real = np.save

    def full(file, array, **options):
        if len(list(OUT.glob("0*.json"))) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file, array, **options)

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        status, _, err = cli(*FOLDER)
    assert (status, "emb.npy cannot be written (No space left on device): free some space" in err) == (1, True), err
    assert len(list(OUT.glob("*.npy"))) == 2 and not list(OUT.glob(".0*"))
    status, _, err = cli(*FOLDER)
    assert (status, "2 of 6 shards are finished from before" in err) == (0, True), err


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["out=./one.pt", "workers=2"], "workers=2: processes share the shards of a folder, and one.pt is one file"),
        (["workers=0"], "workers=0: must be a whole number of processes, at least 1"),
        (["shard_rows=0"], "shard_rows=0: must be a whole number above 0"),
        (["shard_rows=many"], "shard_rows=many: must be a whole number above 0"),
        (["embedder=file", "path=one.pt"], "embedder=file: has rows for one file; give out=FILE.pt"),
        (["out=./many"], "out=./many: would overwrite prompts_file"),
        (["out=./other"], "out=other: the folder has files of another kind, such as mine.txt; choose a new folder"),
        (["out=./taken"], "out=taken: is a file, and a name without an ending is a folder"),
        (["prompts_file=./absent"], "prompts_file=absent: no such file; make it with task=prompts"),
    ],
)
def test_a_folder_that_cannot_be_made_is_refused(cli, settings, reason):
    write_prompts()
    Path("other").mkdir()
    for name in ("other/mine.txt", "taken"):
        Path(name).write_text("mine")
    torch.save({"ids": ["a"], "emb": torch.ones(1, 1)}, "one.pt")
    status, _, err = cli(*given(settings))
    assert (status, reason in err, "Traceback" in err) == (1, True, False), err
    assert Path("other/mine.txt").read_text() == "mine"


def test_readers_of_one_file_refuse_a_folder_with_a_remedy(copied, cli):
    with pytest.raises(UserError, match=r"is a folder of shards, and one file is needed.*out=FILE\.pt"):
        load_embeddings(copied)
    command = [word for word in SMALL if not word.startswith("task")]
    for task in (["task=embed", "embedder=file", "path=embeddings", "out=./x.pt"],
                 ["task=cluster", "embeddings_file=./embeddings"]):  # fmt: skip
        status, _, err = cli(*task, *(word for word in command if task[0] != "task=cluster" or "prompts" in word))
        assert (status, "is a folder" in err, "Traceback" in err) == (1, True, False), err


def test_a_single_big_file_is_cut_into_shards(whole, cli):
    write_prompts()
    Path("big.jsonl").write_text(Path("many/a.jsonl").read_text() + Path("many/b.jsonl").read_text())
    assert cli(*given(["prompts_file=big.jsonl"]))[0] == 0
    found, parts = ShardedEmbeddings.open(OUT), ShardedEmbeddings.open(whole / "embeddings")
    assert found.record["sizes"] == [4, 4, 4, 4, 4, 1]
    rows = np.arange(21)
    assert (found.take(rows) - parts.take(rows)).abs().max() < 1e-3
