"""task=density on a folder of embeddings: the weights, shared work, kills, damage, and what it rejects."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from kat.data.tables import read_weights
from kat.pipeline import density_shards
from kat.sampling.sampler import DensityAwareSampler
from kat.sampling.weight_files import WeightFolder
from kat.shards.density import ShardedDensity
from kat.shards.stages import Stages
from latentwire.harness.errors import UserError
from latentwire.harness.participants import taking_part
from latentwire.harness.results import ResultWriteError
from latentwire.harness.shard_files import ShardFolder
from tests.helpers.embeddings import rounded, write_embedding_folder
from tests.helpers.files import read_json, read_rows, write_rows
from tests.helpers.lifelike import lifelike
from tests.helpers.programs import start

pytestmark = pytest.mark.usefixtures("one_thread")
OUT = Path("weights")
N, SIZES = 190, [70, 50, 15, 55]  # fewer than the prompts that make a planted crowd
NAMES = ["00000", "00001", "00002", "00003"]
COMMAND = ["task=density", "device=cpu", "embeddings_file=./embeddings", "weights_file=./weights"]
STAGES = ["places", "whitening", "lists", "white", "needed", "gathered", "found"]


def rows() -> torch.Tensor:
    """Return rows of which five are copies of rows in an earlier shard."""
    x = lifelike(0, n=N - 5, width=24)
    return rounded(torch.cat([x, x[:5]]))


def contents(folder: Path) -> dict[str, bytes]:
    """Return what the task wrote, by file, apart from times and the picture."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".npy", ".parquet")}


def times(folder: Path) -> dict[str, int]:
    """Return when each file was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder with embeddings and weights that one process made without an interruption."""
    folder = tmp_path_factory.mktemp("whole")
    write_embedding_folder(folder / "embeddings", rows(), SIZES)
    started = start("run", *COMMAND, folder=folder)
    assert started.wait() == [0], started.told()
    assert started.told().count(f"{N} prompts, estimator whitened_knn, k 10") == 1
    return folder


@pytest.fixture
def empty(whole, cli, tmp_path) -> Path:
    """The working folder with embeddings, and the folder of weights, which does not exist yet."""
    shutil.copytree(whole / "embeddings", tmp_path / "embeddings")
    return tmp_path / "weights"


@pytest.fixture
def made(whole, empty) -> Path:
    """The folder of weights, finished."""
    shutil.copytree(whole / "weights", empty)
    return empty


def test_the_folder_has_the_weights_of_one_file(whole, cli):
    """The ids, sources and groups follow the order of the embeddings."""
    ids = [f"p{i:04d}" for i in range(N)]
    torch.save({"ids": ids, "emb": rows()}, "one.pt")
    write_rows("prompts.jsonl", [{"id": name, "prompt": name, "source": "ab"[i % 2]} for i, name in enumerate(ids)])
    status, _, err = cli("task=density", "embeddings_file=./one.pt", "weights_file=./one.jsonl",
                               "prompts_file=./prompts.jsonl")  # fmt: skip
    assert status == 0, err
    found, one = WeightFolder.open(whole / "weights"), read_weights(Path("one.jsonl"))
    assert list(found.ids()) == one[0] == ids
    assert float((found.weights - one[2]).abs().sum() / 2) < 0.005
    assert found.weights.dtype == torch.float64 and float(found.weights.sum()) == pytest.approx(1)
    assert found.groups().tolist() == [row["group"] for row in read_rows("one.jsonl")]
    tables = [found.table(name) for name in NAMES]
    assert [len(table) for table in tables] == SIZES
    density = torch.cat([torch.tensor(table["density"].to_pylist(), dtype=torch.float64) for table in tables])
    weight = torch.cat([torch.tensor(table["weight"].to_pylist(), dtype=torch.float64) for table in tables])
    torch.testing.assert_close(density, one[1], rtol=1e-3, atol=0)
    assert torch.equal(weight, found.weights)
    assert tables[1]["source"].to_pylist() == ["ab"[i % 2] for i in range(70, 120)]
    record, other = read_json(whole / "weights" / "density.json"), read_json("one_density.json")
    assert set(record) - set(other) == {"key", "shards", "sizes"} and set(other) <= set(record)
    for name in ("prompts", "distinct_embeddings", "near_duplicates", "settings", "seed", "warnings", "index"):
        if name != "near_duplicates":
            assert record[name] == other[name], name
    assert record["near_duplicates"]["groups"] == other["near_duplicates"]["groups"] <= N - 5
    assert record["mass_by_source"]["a"] == pytest.approx(other["mass_by_source"]["a"], abs=1e-3)
    assert (record["shards"], record["sizes"]) == (NAMES, SIZES)
    shown = {frozenset(group["ids"]): group["texts"] for group in record["near_duplicates"]["largest"]}
    assert all(texts == [f"prompt {int(name[1:])}" for name in sorted(names)] for names, texts in shown.items())


def test_what_is_left_besides_the_weights_is_small(whole):
    """The stages with the embeddings are removed; the others give other weights without a search."""
    [parts] = (whole / "weights" / ".parts").iterdir()
    assert {path.name for path in parts.iterdir()} == set(STAGES) - {"white", "gathered"}
    assert not list((whole / "weights").rglob("claims"))
    expected = [".parts", "density.json", "density.png", "weights.npy", *(f"{name}.json" for name in NAMES)]
    expected += [f"{name}.prompts.parquet" for name in NAMES]
    assert sorted(path.name for path in (whole / "weights").iterdir()) == sorted(expected)
    assert (whole / "weights" / "density.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in whole.iterdir() if path.is_dir()) == ["embeddings", "weights"]


def test_finished_weights_are_kept_and_force_makes_them_again(made, cli, monkeypatch):
    before, content = times(made), contents(made)
    stages = {path: path.stat().st_mtime_ns for path in made.glob(".parts/*/*/*.json")}
    with monkeypatch.context() as patch:
        patch.setattr(ShardedDensity, "run", lambda self: pytest.fail("computed again"))
        status, _, err = cli(*COMMAND)
        assert (status, "weights: weights  (finished before; force=true makes them again)" in err) == (0, True), err
        assert cli(*COMMAND, "workers=2")[0] == 0
    assert times(made) == before
    status, _, err = cli(*COMMAND, "force=true")
    assert (status, "finished before" in err) == (0, False), err
    assert contents(made) == content
    after = times(made)
    assert after.keys() == before.keys() and not [name for name in before if before[name] == after[name]]
    assert stages and not [path for path, time_ns in stages.items() if path.stat().st_mtime_ns == time_ns]


def test_other_settings_and_embeddings_replace_the_weights(made, cli):
    """Shards that the new embeddings do not have are removed."""
    before, key = contents(made), read_json(made / "density.json")["key"]
    assert cli(*COMMAND, "sampler.k=4")[0] == 0
    changed = contents(made)
    assert changed.keys() == before.keys() and changed["weights.npy"] != before["weights.npy"]
    assert read_json(made / "density.json")["key"] != key
    assert cli(*COMMAND)[0] == 0
    assert contents(made) == before
    assert len(list((made / ".parts").iterdir())) == 1
    shutil.rmtree("embeddings")
    write_embedding_folder(Path("embeddings"), rows().flip(0), [100, 90])
    assert cli(*COMMAND)[0] == 0
    found = WeightFolder.open(OUT)
    assert found.names == NAMES[:2] and len(list(OUT.glob("0*"))) == 4
    backwards = torch.from_numpy(np.load(io.BytesIO(before["weights.npy"]))).flip(0)
    torch.testing.assert_close(found.weights, backwards, rtol=0.05, atol=0)  # the same prompts in another order


@pytest.mark.parametrize("setting", ["seed=1", "near_duplicate=0.9", "sampler.cap=0.9", "sampler.index=ivf"])
def test_each_setting_decides_the_weights(made, cli, monkeypatch, setting):
    monkeypatch.setattr(ShardedDensity, "run", lambda self: (_ for _ in ()).throw(UserError("computed again")))
    status, _, err = cli(*COMMAND, setting)
    assert (status, "computed again" in err) == (1, True), err
    assert (made / "density.json").exists()  # the old weights stay until new ones are written


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def only_finished(run):
    """Return `Stages.run` with a failure for a stage that is not finished."""

    def checked(self, stage, names, work, is_over=lambda: False):
        run(self, stage, names, lambda name: pytest.fail(f"{stage}/{name} is computed again"), is_over)

    return checked


@pytest.mark.parametrize("setting", ["target_ess=0.6", "cap=0.9", "crowd_cap=0.2"])
def test_other_weights_of_the_same_densities_need_no_search(made, cli, monkeypatch, setting):
    monkeypatch.setattr(Stages, "run", only_finished(Stages.run))
    before = WeightFolder.open(made).weights.clone()
    status, _, err = cli(*COMMAND, f"sampler.{setting}")
    assert (status, "finished before" in err) == (0, False), err
    assert not torch.equal(WeightFolder.open(made).weights, before)
    assert cli(*COMMAND)[0] == 0 and torch.equal(WeightFolder.open(made).weights, before)


@pytest.mark.parametrize("wrong", ["workers=0", "sampler.index=hnsw", "sampler.k=0", "near_duplicate=high"])
def test_force_with_a_wrong_setting_loses_nothing(made, cli, wrong):
    before = times(made)
    status, _, err = cli(*COMMAND, "force=true", wrong)
    assert (status, "Traceback" in err) == (1, False), err
    assert times(made) == before


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("weights.npy", flip, "weights.npy is damaged; the weights are made again"),
        ("weights.npy", Path.unlink, "weights.npy is missing; the weights are made again"),
        ("00001.prompts.parquet", flip, "00001.prompts.parquet is damaged; shard 00001 counts as missing"),
        ("00003.prompts.parquet", Path.unlink, "00003.prompts.parquet is missing; shard 00003 counts as missing"),
        ("00002.json", lambda path: path.write_text("{"), "00002.json is damaged; shard 00002 counts as missing"),
    ],
)
def test_damaged_weights_are_named_once_and_made_again(made, cli, monkeypatch, name, change, message):
    """Nothing is searched again: the results of the last stage are still there."""
    monkeypatch.setattr(Stages, "run", only_finished(Stages.run))
    before = contents(made)
    change(made / name)
    status, _, err = cli(*COMMAND)
    assert (status, err.count(message)) == (0, 1), err
    assert contents(made) == before
    WeightFolder.open(made)


def test_a_damaged_record_is_an_error_with_a_remedy(made, cli):
    (made / "density.json").write_text("{")
    status, _, err = cli(*COMMAND)
    assert (status, "density.json is not readable as JSON" in err, "Traceback" in err) == (1, True, False), err


def test_a_damaged_shard_of_embeddings_is_named(empty, cli):
    flip(Path("embeddings/00002.emb.npy"))
    status, _, err = cli(*COMMAND)
    assert status == 1 and "shard 00002 is missing or damaged; run task=embed again" in err, err
    assert not empty.exists()


def test_what_a_failed_run_found_is_used_and_damage_in_it_named(empty, whole, cli, monkeypatch):
    """The disk is full when density.json is written; then two files of the stages are damaged."""

    def full(path: Path, content: object) -> None:
        raise ResultWriteError(path, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(density_shards, "write_json", full)
        status, _, err = cli(*COMMAND)
    assert (status, "density.json cannot be written (No space left on device)" in err) == (1, True), err
    [parts] = (empty / ".parts").iterdir()
    assert {path.name for path in parts.iterdir()} == set(STAGES) - {"white"}
    assert not list(parts.rglob("claims"))
    before = {path: path.stat().st_ino for path in parts.rglob("*") if path.is_file()}
    damaged = [parts / "found" / "00000.mean.npy", parts / "places" / "all.json"]
    flip(damaged[0])
    damaged[1].write_text("[]")
    kept: dict[Path, int] = {}
    real = ShardedDensity.collect

    def collect(self):
        kept.update({path: path.stat().st_ino for path in parts.rglob("*") if path.is_file()})
        return real(self)

    monkeypatch.setattr(ShardedDensity, "collect", collect)
    (empty / ".weights.npy.abc.tmp").write_text("left by a killed process")
    status, _, err = cli(*COMMAND)
    assert status == 0, err
    assert err.count("00000.mean.npy is damaged; shard 00000 counts as missing") == 1, err
    assert err.count("all.json is damaged; shard all counts as missing") == 1, err
    again = {path.parent.name for path in before if kept[path] != before[path]}
    assert again == {"found", "places"}
    assert contents(empty) == contents(whole / "weights")
    assert [path.name for path in empty.glob(".*")] == [".parts"]


def test_a_full_disk_stops_a_stage_with_a_remedy(empty, whole, cli, monkeypatch):
    real = ShardFolder.save

    def save(self, name, arrays=None, tables=None, facts=None):
        if self.folder.name == "white" and len(list(self.folder.glob("*.json"))) == 2:
            raise ResultWriteError(self.folder / name, os.strerror(errno.ENOSPC))
        real(self, name, arrays, tables, facts)

    with monkeypatch.context() as patch:
        patch.setattr(ShardFolder, "save", save)
        status, _, err = cli(*COMMAND)
    assert (status, "cannot be written (No space left on device): free some space" in err) == (1, True), err
    saved: list[str] = []

    def counted(self, name, arrays=None, tables=None, facts=None):
        saved.append(f"{self.folder.name}/{name}")
        real(self, name, arrays, tables, facts)

    monkeypatch.setattr(ShardFolder, "save", counted)
    assert cli(*COMMAND)[0] == 0
    assert sum(name.startswith("white/") for name in saved) == 2
    assert not [name for name in saved if name.split("/")[0] in ("places", "whitening", "lists")]
    assert contents(empty) == contents(whole / "weights")


def test_a_job_that_is_overtaken_ends_well(empty, whole, cli, monkeypatch):
    """Another job writes the weights and removes the stages, so a stage of this one fails."""

    def overtaken(self) -> None:
        shutil.copytree(whole / "weights", empty, dirs_exist_ok=True)
        raise FileNotFoundError("a file of a stage")

    with monkeypatch.context() as patch:
        patch.setattr(ShardedDensity, "run", overtaken)
        status, printed, err = cli(*COMMAND)
    assert (status, f"{N} prompts, estimator whitened_knn" in printed) == (0, True), err
    shutil.rmtree(empty)

    def failed(self) -> None:
        raise UserError("a stage fails")

    monkeypatch.setattr(ShardedDensity, "run", failed)
    status, _, err = cli(*COMMAND)
    assert (status, "a stage fails" in err) == (1, True), err


# Several processes.


def slowly() -> None:
    """Make every file take a while, so that a test can end the process in any stage."""
    real = ShardFolder.save

    def save(self, name, arrays=None, tables=None, facts=None):
        time.sleep(0.03)
        real(self, name, arrays, tables, facts)
        time.sleep(0.03)

    ShardFolder.save = save  # type: ignore[method-assign]


@pytest.mark.slow
def test_kills_in_every_stage_lose_only_the_unit_in_work(empty, whole, tmp_path):
    """The process is killed as soon as a stage has its first file; the next one goes on, and two ranks finish."""
    finished: dict[str, int] = {}
    for stage in [*STAGES, "weights"]:
        pattern = f".parts/*/{stage}/*.json" if stage != "weights" else "0*.json"
        started = start("run", *COMMAND, folder=tmp_path, before=slowly)
        started.kill_when(lambda pattern=pattern: bool(list(OUT.glob(pattern))))
        now = {str(path.relative_to(OUT)): path.stat().st_ino for path in OUT.glob(".parts/*/*/*.json")}
        assert not (OUT / "density.json").exists()
        assert all(now[name] == finished[name] for name in finished if "/white/" not in name)
        finished = now
    started = start("run", *COMMAND, folder=tmp_path, ranks=2, before=slowly)
    assert started.wait() == [0, 0], started.told()
    assert started.told().count(f"{N} prompts, estimator whitened_knn") == 1
    assert contents(OUT) == contents(whole / "weights")
    assert [path.name for path in OUT.glob(".*")] == [".parts"] and not (OUT / "claims").exists()


@pytest.mark.slow
def test_two_workers_write_what_one_writes(empty, whole, cli, monkeypatch):
    """This process waits in the stage white until the other one has done a shard."""
    own, real = [], ShardFolder.save

    def save(self, name, arrays=None, tables=None, facts=None):
        if self.folder.name == "white":
            own.append(name)
            deadline = time.monotonic() + 240
            while len(own) == 2 and len(list(self.folder.glob("*.json"))) < 2 and time.monotonic() < deadline:
                time.sleep(0.01)
        real(self, name, arrays, tables, facts)

    monkeypatch.setattr(ShardFolder, "save", save)
    status, printed, err = cli(*COMMAND, "workers=2")
    assert (status, printed.count(f"{N} prompts, estimator whitened_knn")) == (0, 1), err
    assert 0 < len(own) < 4
    assert contents(empty) == contents(whole / "weights")


@pytest.mark.slow
def test_workers_of_a_launcher_share_the_work(made, whole, cli):
    """With force=true the weights are removed once."""
    before, content = times(made), contents(made)
    status, _, err = cli("-m", *COMMAND, "hydra/launcher=joblib", "workers=2", "force=true")
    assert (status, "jobs: 2, workers: 2" in err) == (0, True), err
    after = times(made)
    assert not [name for name in content if before[name] == after[name]]
    assert contents(made) == content


def test_weights_in_work_are_left_alone(empty, cli):
    """Neither force=true nor other settings remove what a process makes."""
    with taking_part(empty, "another"):
        status, _, err = cli(*COMMAND)
        assert (status, "weights: process" in err and "does other work there; wait" in err) == (1, True), err
        status, _, err = cli(*COMMAND, "force=true")
        assert (status, "does work there; wait until it ends" in err) == (1, True), err
    assert not (empty / "density.json").exists()
    assert cli(*COMMAND)[0] == 0


def test_workers_get_the_job_without_force(made, cli, monkeypatch):
    """A second process that removed the weights would undo the work of the first one."""
    got = []

    def started_workers(run, cfg, workers):
        got.append((run, cfg.force, workers, (made / "density.json").exists()))
        return contextlib.nullcontext()

    monkeypatch.setattr(density_shards, "started_workers", started_workers)
    assert cli(*COMMAND, "force=true", "workers=3")[0] == 0
    assert got == [("kat.pipeline.density:density", False, 3, False)]


# What the weights are for, and what is refused.


def test_weights_in_shards_draw_prompts(made, cli):
    sampler = DensityAwareSampler.from_weights(OUT, num_samples=400, seed=0)
    drawn = torch.tensor(list(sampler))
    weights = WeightFolder.open(OUT).weights
    assert float(weights[drawn].mean()) > 1.5 / N  # rare prompts come more often
    status, _, err = cli("task=subsample", "weights_file=./weights", "budget=30", "out=./ids.txt")
    assert status == 0, err
    names = Path("ids.txt").read_text().split()
    assert len(set(names)) == 30 and set(names) <= {f"p{i:04d}" for i in range(N)}


@pytest.mark.parametrize("estimator", ["knn", "whitened_sketch"])
def test_the_other_estimators_for_shards(empty, cli, estimator):
    status, printed, err = cli(*COMMAND, f"sampler.estimator={estimator}", "near_duplicate=1")
    assert (status, f"estimator {estimator}" in printed) == (0, True), err
    record = read_json(empty / "density.json")
    assert record["ess_share"] == pytest.approx(0.4)
    assert record["near_duplicates"]["groups"] == record["distinct_embeddings"] == N - 5


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["compare_file=./one.pt"], "compare_file=./one.pt: needs all prompts in memory; leave it out"),
        (["clusters_file=./known.json"], "clusters_file=./known.json: needs all prompts in memory; leave it out"),
        (["sampler.estimator=kde_global"], "estimator=kde_global: needs all embeddings in memory; use whitened_knn"),
        (["sampler.estimator=knn"], "near_duplicate=0.7 estimator=knn: in shards, near-duplicates come from"),
        (["sampler.k=300"], "k=300 needs at least 301 different prompts, got 185"),
        (["workers=0"], "workers=0: must be a whole number of processes, at least 1"),
        (["weights_file=./one.jsonl"], "out=./one.jsonl: embeddings in shards give weights in shards"),
        (["weights_file=./taken"], "out=taken: is a file, and a name without an ending is a folder"),
        (["weights_file=./mine"], "out=mine: the folder has files of another kind, such as 2024.csv; choose a new"),
        (["weights_file=./others"], "out=others: the folder has files of another kind, such as 00000.emb.npy"),
        (["weights_file=./embeddings"], "would overwrite embeddings_file"),
        (["embeddings_file=./absent"], "embeddings_file=absent: no such folder; make it with task=embed"),
        (["sampler=uniform"], "sampler=uniform: task=density computes the weights"),
    ],
)
def test_what_shards_cannot_do_is_refused(empty, cli, settings, reason):
    """Folders of other files stay as they are."""
    Path("mine").mkdir()
    for name in ("mine/2024.csv", "mine/2024.json", "taken"):
        Path(name).write_text("mine")
    shutil.copytree("embeddings", "others")
    before = {path: path.read_bytes() for folder in ("mine", "others") for path in Path(folder).iterdir()}
    names = {setting.split("=")[0] for setting in settings}
    command = [word for word in COMMAND if word.split("=")[0] not in names]
    status, _, err = cli(*command, *settings)
    assert (status, reason in err, "Traceback" in err) == (1, True, False), err
    assert {path: path.read_bytes() for folder in ("mine", "others") for path in Path(folder).iterdir()} == before
