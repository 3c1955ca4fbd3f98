"""A run uses existing files that match its settings, and refuses others with the difference and a remedy."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from kat.pipeline.embed import embed
from kat.pipeline.ensure import config_of, ensure, prompt_tasks
from latentwire.harness.errors import UserError
from latentwire.harness.paths import CONF

pytestmark = pytest.mark.usefixtures("one_thread")
ALL = ["pairs", "prompts", "embed", "density"]
FILES = Path("outputs/kat")


def config(*overrides: str):
    usual = ["task=reward", "model=tiny_random", "device=cpu"]
    if not any(word.startswith("pairs=") for word in overrides):
        usual += ["pairs=file", "path=mine.jsonl"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=[*usual, *overrides])


def write_pairs(path: Path, count: int) -> None:
    rows = [{"prompt": f"how deep is lake {n}", "chosen": "very", "rejected": "no idea"} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder in which a run has made its files."""
    folder = tmp_path_factory.mktemp("made")
    with contextlib.chdir(folder):
        write_pairs(Path("mine.jsonl"), 25)
        ensure(config(), ALL)
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rewrite(name: str, **changes) -> None:
    path = FILES / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop_a_line(name: str) -> None:
    path = FILES / name
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def test_matching_files_are_used_unchanged(here, capfd):
    before = {path: path.stat().st_mtime_ns for path in FILES.iterdir()}
    ensure(config(), ALL)
    assert {path: path.stat().st_mtime_ns for path in FILES.iterdir()} == before
    assert capfd.readouterr().err == ""
    record = json.loads((FILES / "prompts.json").read_text())
    assert (record["split"], record["prompts"]) == ("train", 25)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "overrides", "message"),
    [
        (lambda: write_pairs(Path("other.jsonl"), 9), ["path=other.jsonl"],
         "pairs_all.jsonl: was made from mine/train, but this run needs other/train; give the same pairs=NAME"),
        (lambda: write_pairs(Path("mine.jsonl"), 9), [], "pairs_all.jsonl: was made from mine/train with sha256"),
        (lambda: None, ["pairs=nq_open"], "needs nq_open/train"),
        (lambda: drop_a_line("pairs_all.jsonl"), [], "prompts_all.jsonl: was made from other pairs, but this run"),
        (lambda: drop_a_line("prompts_all.jsonl"), [], "prompts_all.jsonl: is not the file that outputs/kat/prompts"),
        (lambda: None, ["split=null"], "was made from split=train, but this run needs split=null; add split=train"),
        (lambda: None, ["embedder=logits"], "embeddings.pt: was made from embedder hidden, but this run needs "
         "embedder logits; give the same embedder=NAME and model=NAME here, make it again with run.py task=embed"),
        (lambda: None, ["model=smollm2"], "embeddings.pt: was made from model {'tiny_random'"),
        (lambda: rewrite("embeddings.json", key="0"), [], "embeddings.pt: was made from other prompts, but this run"),
        (lambda: drop_a_line("weights.jsonl"), [], "weights.jsonl: is not the file that outputs/kat/density.json"),
        (lambda: rewrite("density.json", embeddings_sha256="0"), [], "embeddings.pt: is not the file that"),
    ],
)  # fmt: skip
def test_files_of_another_origin_are_refused(here, change, overrides, message):
    change()
    before = {path: path.read_bytes() for path in FILES.iterdir()}
    with pytest.raises(UserError) as refused:
        ensure(config(*overrides), ALL)
    assert message in str(refused.value)
    assert {path: path.read_bytes() for path in FILES.iterdir()} == before  # no file is made again


def test_records_of_format_1_are_read(here, capfd):
    """Version 0.2.0 and earlier wrote neither a format nor the columns."""
    for name in ("pairs.json", "prompts.json", "embeddings.json", "density.json"):
        record = json.loads((FILES / name).read_text())
        for key in ("format", "columns", "column_conflicts"):
            record.pop(key, None)
        for one in record.get("sets", {}).values():
            one.pop("columns")
        (FILES / name).write_text(json.dumps(record))
    ensure(config(), ALL)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["pairs.json", "prompts.json", "embeddings.json", "density.json"])
def test_records_that_cannot_be_read_are_refused(here, name):
    rewrite(name, format=99)
    with pytest.raises(UserError, match=rf"{name} has format 99, and this version reads up to"):
        ensure(config(), ALL)
    (FILES / name).write_text('{"format": 2}')
    with pytest.raises(UserError, match=rf"{name} lacks .*: (make (it|the embeddings)|run task=density) again"):
        ensure(config(), ALL)


def test_minor_differences_give_a_message(here, capfd):
    rewrite("density.json", settings={"k": 3, "cap": 0.95})
    ensure(config("dtype=bfloat16"), ALL)
    said = capfd.readouterr().err
    assert "embeddings.pt was computed in float32, and this run would compute it in bfloat16" in said
    assert "weights.jsonl was made with sampler.k=3, which is not the default" in said and "cap" not in said


def test_files_without_a_record_are_used_with_a_message(here, capfd):
    for name in ("pairs.json", "prompts.json", "embeddings.json", "density.json"):
        (FILES / name).unlink()
    ensure(config("path=elsewhere.jsonl", "embedder=logits"), ALL)
    assert capfd.readouterr().err.count("so the origin of") == 4


def test_a_folder_of_embeddings_is_checked_like_a_file(here, capfd):
    folder = config("embeddings_file=embeddings")
    with pytest.raises(UserError, match=r"embeddings_file=embeddings: outputs/kat/embeddings does not exist"):
        ensure(folder, ["embed"])
    embed(config_of(folder, "run", "embed"))
    capfd.readouterr()
    ensure(folder, ["embed"])
    assert capfd.readouterr().err == ""
    with pytest.raises(UserError, match=r"kat/embeddings: was made from embedder hidden, but this run needs embedder"):
        ensure(config("embeddings_file=embeddings", "embedder=logits"), ["embed"])
    drop_a_line("prompts_all.jsonl")
    with pytest.raises(UserError, match=r"kat/embeddings: was made from other prompts, but this run needs"):
        ensure(folder, ["embed"])
    (FILES / "embeddings" / "embeddings.json").unlink()
    with pytest.raises(UserError, match=r"kat/embeddings: its shards are not complete; run run\.py task=embed"):
        ensure(folder, ["embed"])


def test_prompts_of_ones_own_may_be_a_folder(here):
    Path("many").mkdir()
    shutil.copy(FILES / "prompts_all.jsonl", "many/a.jsonl")
    cfg = config("prompts_file=many", "embeddings_file=many.pt")
    assert prompt_tasks(cfg) == ["prompts"]
    embed(config_of(cfg, "run", "embed"))
    ensure(cfg, ["prompts", "embed"])
    drop = Path("many/a.jsonl")
    drop.write_text("".join(drop.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(
        UserError, match=r"many\.pt: was made from other prompts, but this run needs the prompts in many"
    ):
        ensure(cfg, ["prompts", "embed"])
