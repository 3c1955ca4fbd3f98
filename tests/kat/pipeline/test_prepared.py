"""A training run first makes the files that it lacks: the tasks that run, and their settings."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from kat.pipeline import ensure as prepared
from kat.pipeline.artifacts import locate
from kat.pipeline.ensure import config_of, ensure, prompt_tasks
from latentwire.harness.errors import UserError
from latentwire.harness.paths import CONF


def config(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=["task=reward", "model=tiny_random", *overrides])


@pytest.fixture
def jobs(monkeypatch, tmp_path):
    """Replace the four tasks by functions that record their config and write their file."""
    monkeypatch.chdir(tmp_path)
    seen = []

    def job(cfg):
        seen.append(cfg)
        path = Path(cfg.folder) / cfg.out
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("made")

    monkeypatch.setattr(prepared, "JOBS", {name: (job, setting) for name, (_, setting) in prepared.JOBS.items()})
    return seen


@pytest.mark.slow
def test_only_missing_files_are_made_in_order(jobs, capfd):
    cfg = config("folder=here")
    Path("here").mkdir()
    Path("here/prompts_all.jsonl").write_text("there")
    ensure(cfg, ["pairs", "prompts", "embed", "density"])
    assert [job.task for job in jobs] == ["pairs", "embed", "density"]
    assert Path("here/prompts_all.jsonl").read_text() == "there"
    said = capfd.readouterr().err
    assert "here/pairs_all.jsonl: not there yet, so task=pairs comes first" in said and "task=prompts" not in said
    ensure(cfg, ["pairs", "prompts", "embed", "density"])
    assert len(jobs) == 3


def test_tasks_receive_the_settings_of_the_run(jobs):
    cfg = config("folder=here", "seed=7", "pairs=hh_rlhf", "embedder=logits", "batch_tokens=99", "device=cpu")
    ensure(cfg, ["pairs", "embed", "density"])
    pairs, embed, density = jobs
    assert list(pairs.pairs) == ["hh_rlhf"] and pairs.pairs.hh_rlhf.repo == cfg.pairs.hh_rlhf.repo
    assert embed.embedder.name == "logits" and embed.model.name == "tiny_random"
    assert embed.batch_tokens == "auto"  # the embedder's default
    assert density.out == "weights.jsonl" and density.seed == 7 and density.sampler.name == "density"
    assert {job.folder for job in jobs} == {"here"} and {job.device for job in jobs} == {"cpu"}


def test_a_users_pairs_file_is_passed_with_its_path(jobs):
    ensure(config("pairs=file", "path=mine.jsonl"), ["pairs"])
    assert jobs[0].pairs.file.splits == {"train": "mine.jsonl"}


def test_a_prompts_file_of_ones_own_needs_no_pairs(jobs):
    cfg = config("folder=here", "prompts_file=my.jsonl")
    assert prompt_tasks(cfg) == ["pairs", "prompts"]  # no such file yet
    Path("my.jsonl").write_text('{"prompt": "Why?"}')
    assert prompt_tasks(cfg) == ["prompts"] and locate(cfg, "prompts_file") == Path("my.jsonl")
    ensure(cfg, prompt_tasks(cfg))
    assert jobs == []
    Path("here").mkdir()
    Path("here/my.jsonl").write_text("made by task=prompts")
    Path("here/my_prompts.json").write_text("{}")
    assert locate(cfg, "prompts_file") == Path("my.jsonl")  # a file in the working folder wins
    Path("my.jsonl").unlink()
    assert prompt_tasks(cfg) == ["pairs", "prompts"] and locate(cfg, "prompts_file") == Path("here/my.jsonl")


@pytest.mark.parametrize("setting", ["pairs_file", "prompts_file", "embeddings_file", "weights_file"])
def test_a_missing_file_of_another_name_is_an_error(jobs, setting):
    """Else a mistyped name would be made from the default data, and the run would train on it."""
    task = {"pairs_file": "pairs", "embeddings_file": "embed", "weights_file": "density"}.get(setting, "prompts")
    for name, place in (("typo.jsonl", "here/typo.jsonl"), (f"{Path.cwd()}/typo.jsonl", f"{Path.cwd()}/typo.jsonl")):
        message = (
            f"^{setting}={name}: {place} does not exist.*; correct the name, or make the file with run.py task={task}"
        )
        with pytest.raises(UserError, match=message):
            ensure(config("folder=here", f"{setting}={name}"), ["pairs", "prompts", "embed", "density"])
    assert jobs == [] and list(Path().iterdir()) == []
    Path("here").mkdir()
    Path("here/typo.jsonl").write_text("made by an earlier task")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepared, "require_same_origin", lambda *_: None)
        ensure(config("folder=here", f"{setting}=typo.jsonl"), [task])
        ensure(config("folder=here", f"{setting}=here/{OmegaConf.load(CONF / 'kat/files.yaml')[setting]}"), [task])
    assert [job.task for job in jobs] == [task]


def test_results_are_never_written_next_to_the_command(jobs):
    """A prompts file in the working folder is read; `out` and the default names are of the shared folder."""
    for name in ("my.jsonl", "prompts_all.jsonl", "weights.jsonl"):
        Path(name).write_text('{"prompt": "Why?"}')
    cfg = config("folder=here", "out=my.jsonl", "weights_file=my.jsonl")
    assert locate(cfg, "out") == locate(cfg, "weights_file") == Path("here/my.jsonl")
    assert locate(cfg, "prompts_file") == Path("here/prompts_all.jsonl")


def test_the_config_of_another_task_accepts_changes():
    cfg = config("sampler=density", "seed=3", "folder=here")
    made = config_of(cfg, "train", "reward", steps=2, sampler={"name": "reversed"})
    assert (made.steps, made.sampler.name, made.seed, made.folder) == (2, "reversed", 3, "here")
    assert made.name == "reversed_seed3" and made.out == "outputs/reward/reversed_seed3"
