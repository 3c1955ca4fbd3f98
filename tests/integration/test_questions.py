"""run.py task=questions from the command line, with a scripted model where questions must be kept."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from latentwire.data.examples import DataSpec, load_data
from latentwire.harness.participants import taking_part
from latentwire.harness.results import config_hash
from latentwire.latent_training.passages import PassageSpec, load_latent_data
from latentwire.questions import task
from tests.helpers.files import read_json, read_rows
from tests.helpers.questions import ScriptedModel

TEXT = "\n\n".join(f"Name{n} led the dig at Pellbeck{n}. It rained on the old causeway{n}." for n in range(5))
ARGUMENTS = ("task=questions", "model=tiny_random", "path=text.txt", "passages_per_part=2", "beginnings=[Who,What]")
OUT = Path("outputs/questions")


class ScriptedWriter(ScriptedModel):
    """Takes the place of `QuestionWriter`; the process is interrupted before part `stop_before`."""

    stop_before: int | None = None
    fits_all = True
    parts = 0

    def __init__(self, lm, shown, settings):
        super().__init__()
        self.lm = lm

    def fits(self, passage):
        return type(self).fits_all

    def write(self, beginnings):
        if type(self).parts == type(self).stop_before:
            raise KeyboardInterrupt
        type(self).parts += 1
        return super().write(beginnings)


@pytest.fixture
def questions(cli, monkeypatch, tmp_path) -> Callable[..., tuple[int, str, str]]:
    (tmp_path / "text.txt").write_text(TEXT)
    monkeypatch.setattr(task, "QuestionWriter", ScriptedWriter)
    for name, value in (("stop_before", None), ("fits_all", True), ("parts", 0)):
        monkeypatch.setattr(ScriptedWriter, name, value)
    return lambda *more: cli(*ARGUMENTS, *more)


def test_the_file_is_read_by_evaluation_and_training(questions):
    status, out, _ = questions()
    assert status == 0
    assert "kept 15 of 20 questions (75.0%), about 5 of 5 passages" in out
    result, rows = read_json(OUT / "result.json"), read_rows(OUT / "questions.jsonl")
    assert (result["kept"], result["written"], result["passages"]) == (15, 20, 5)  # at most 3 of the 4 about a passage
    assert result["kept"] + sum(result["dropped"].values()) == result["written"]
    spec = DataSpec("file", "file", path=str(OUT / "questions.jsonl"))
    examples = load_data(spec).train
    assert [(each.id, each.question) for each in examples] == [(row["id"], row["question"]) for row in rows]
    short_qa = DataSpec("short_qa", "short_qa")
    data = load_latent_data(short_qa, spec.path, PassageSpec(10000, None, 0.1, 5, 3), seed=0)
    assert {row["context"] for row in rows} < {passage.text for passage in data.train}


def test_a_killed_run_ends_with_the_same_file(questions):
    assert questions()[0] == 0
    whole = (OUT / "questions.jsonl").read_bytes()
    for parts in range(3):
        out = f"out=killed{parts}"
        ScriptedWriter.parts, ScriptedWriter.stop_before = 0, parts
        with pytest.raises(BaseException):  # noqa: B017  # the interruption, as the entry passes it on
            assert questions(out)[0] == 0, "interrupted"
        assert not Path(f"killed{parts}/questions.jsonl").exists()
        assert len(list(Path(f"killed{parts}/parts").glob("*.json"))) == parts
        ScriptedWriter.parts, ScriptedWriter.stop_before = 0, None
        status, _, log = questions(out)
        assert status == 0 and ScriptedWriter.parts == 3 - parts
        assert (f"{parts} of 3 parts are finished from before" in log) == (parts > 0)
        assert Path(f"killed{parts}/questions.jsonl").read_bytes() == whole


def test_a_finished_run_is_not_repeated_but_force_repeats_it(questions):
    assert questions()[0] == 0
    ScriptedWriter.parts = 0
    status, _, log = questions()
    assert status == 0 and "finished before" in log and ScriptedWriter.parts == 0
    assert questions("force=true")[0] == 0 and ScriptedWriter.parts == 3
    assert (OUT / "replaced" / "1" / "questions.jsonl").read_bytes() == (OUT / "questions.jsonl").read_bytes()


def test_a_changed_file_or_setting_is_refused(questions):
    assert questions()[0] == 0
    status, _, log = questions("min_f1=0.9")
    assert status == 1 and "settings.min_f1 was 0.8 and is 0.9" in log
    Path("text.txt").write_text(f"{TEXT}\n\nOne more passage came in here.")
    status, _, log = questions()
    assert status == 1 and "belongs to another configuration (text was" in log
    Path("text.txt").write_text(TEXT)
    (OUT / "questions.jsonl").write_text("")
    status, _, log = questions()
    assert status == 1 and "questions.jsonl: is missing or was changed after the run" in log


def test_an_unfinished_folder_of_another_run_is_refused(questions):
    ScriptedWriter.stop_before = 1
    with pytest.raises(BaseException):  # noqa: B017  # the interruption, as the entry passes it on
        assert questions()[0] == 0, "interrupted"
    status, _, log = questions("min_f1=0.9")
    assert status == 1 and "parts.json belongs to another configuration (settings.min_f1" in log


def test_parts_of_others_are_joined_and_force_leaves_them(questions):
    """This process writes two parts while the other one, whose part appears at its end, takes part."""
    assert questions()[0] == 0
    whole, key = (OUT / "questions.jsonl").read_bytes(), config_hash(read_json(OUT / "result.json")["identity"])
    (part,) = OUT.glob("parts/000001.json")
    for path in (OUT / "result.json", OUT / "questions.jsonl", part):
        path.unlink()
    with taking_part(OUT, key):
        status, _, log = questions("force=true")
        assert status == 1 and f"{OUT}: process {os.getpid()} on " in log and "does work there; wait until it" in log
        assert len(list(OUT.glob("parts/*.json"))) == 2
        ScriptedWriter.parts = 0
        assert questions()[0] == 0 and ScriptedWriter.parts == 1
    assert (OUT / "questions.jsonl").read_bytes() == whole


PLUGIN = """
from latentwire.questions import task
from tests.helpers.questions import ScriptedModel

class Writer(ScriptedModel):
    def __init__(self, lm, shown, settings):
        super().__init__()
        self.lm = lm

    def fits(self, passage):
        return True

task.QuestionWriter = Writer
"""


@pytest.mark.slow
def test_workers_of_a_launcher_write_what_one_process_writes(questions, tmp_path):
    """With force=true the finished questions are moved once, by no worker."""
    assert questions()[0] == 0
    whole = (OUT / "questions.jsonl").read_bytes()
    (tmp_path / "scripted_writer.py").write_text(PLUGIN)
    more = ("plugins=[scripted_writer]", "hydra/launcher=joblib", "workers=2", "force=true", "device=cpu")
    status, _, log = questions(*more, "-m")
    assert status == 0, log
    assert (OUT / "questions.jsonl").read_bytes() == whole
    assert sorted(path.name for path in (OUT / "replaced").iterdir()) == ["1"]
    assert (OUT / "replaced" / "1" / "questions.jsonl").read_bytes() == whole
    assert read_json(OUT / "result.json")["config"]["workers"] == 1
    assert ScriptedWriter.parts == 3  # all of the first command, in this process


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("path=",), "path: no file given; write path=FILE"),
        (("path=none.txt",), "path=none.txt: no such file; give a .txt"),
        (("path=empty.txt",), "path=empty.txt: the file holds no text"),
        (("beginnings=[Quando]",), "beginnings=['Quando']: no question of the data begins like this"),
        (("max_f1_without=2",), "max_f1_without=2.0: must be between 0 and 1"),
        (("embed_transform=rms_matching",), "embed_transform=rms_matching: task=questions reads plain text"),
        (("shots=200",), "shots=200: the data have only 120 passages"),
    ],
)
def test_bad_input_names_value_reason_and_remedy(questions, arguments, message):
    Path("empty.txt").write_text("\n\n")
    status, _, log = questions(*arguments)
    assert status == 1 and message in log


def test_passages_beyond_the_context_are_refused(questions):
    ScriptedWriter.fits_all = False
    status, _, log = questions()
    assert status == 1 and "part_words=48: with shots, question and answer 5 of 5 passages do not fit" in log
    assert not list((OUT / "parts").glob("*.json")) if (OUT / "parts").exists() else True


def test_a_random_model_keeps_nothing_and_says_why(cli, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    status, _, log = cli(*ARGUMENTS, "samples=1", "shots=1", "examples_per_beginning=1")
    assert status == 1
    assert "path=text.txt: none of 4 written questions is kept (" in log and "give a larger model" in log
    (part,) = (OUT / "parts").glob("*.json")
    assert sum(json.loads(part.read_text())["dropped"].values()) == 4
