"""What the jobs of a command share: an object for each purpose, built anew when what decides it changes."""

from __future__ import annotations

import pickle

import pytest
from omegaconf import OmegaConf

from latentwire.harness.session import Session, Task


def test_a_kept_object_follows_its_key():
    session, built = Session(), []

    def build(name):
        built.append(name)
        return name

    assert [session.keep("model", key, lambda key=key: build(key)) for key in ("a", "a", "b", "a")] == list("aaba")
    assert built == ["a", "b", "a"]  # only the newest object of a purpose is kept
    assert session.keep("tracker", "a", lambda: build("tracker")) == "tracker"
    assert session.keep("model", "a", lambda: build("again")) == "a"


def test_a_session_in_another_process_builds_its_own_objects():
    session = Session("train", sweeping=True)
    session.keep("model", "a", lambda: "here")
    other = pickle.loads(pickle.dumps(session))
    assert (other.entry, other.sweeping, other.remote, session.remote) == ("train", True, True, False)
    assert other.keep("model", "a", lambda: "there") == "there"


@pytest.mark.parametrize(
    ("entry", "settings", "folder"),
    [
        ("run", {"out": "results"}, "results"),
        ("run", {"folder": "files", "out": "weights"}, "files"),
        ("run", {"folder": None, "out": None}, "outputs"),
        ("run", {"out": "texts/passages.json"}, "texts"),
        ("train", {"folder": "files", "out": "runs/one"}, "runs/one"),
    ],
)
def test_the_folder_of_a_job_is_never_a_file(entry, settings, folder, tmp_path, monkeypatch):
    """Tasks that write files have a setting with their folder; train.py reads files from it."""
    monkeypatch.chdir(tmp_path)
    assert Session(entry).folder(OmegaConf.create(settings)) == tmp_path / folder


def test_a_task_may_decide_by_its_config_whether_it_divides():
    session = Session(tasks={
        "one": Task("m:f"), "all": Task("m:f", divides_itself=True),
        "some": Task("m:f", divides_itself="tests.helpers.jobs:is_large"),
    })  # fmt: skip
    found = {task: [session.divides(OmegaConf.create({"task": task, "size": size})) for size in (1, 9)]
             for task in session.tasks}  # fmt: skip
    assert found == {"one": [False, False], "all": [True, True], "some": [False, True]}
