"""Results record the code and the machine that made them."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
import torch
from accelerate import PartialState

from latentwire.harness.origin import git_commit, made_by, made_on
from latentwire.harness.paths import ROOT


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_has_a_plus_for_uncommitted_changes(tmp_path, monkeypatch):
    """Without a repository or a commit there is none."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path / "repo"), "-c", "user.name=n", "-c", "user.email=e@x", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "repo" / "sub").mkdir(parents=True)
    assert git_commit(tmp_path / "repo") is None
    git("init", "--quiet")
    assert git_commit(tmp_path / "repo") is None  # nothing committed
    (tmp_path / "repo" / "file").write_text("one")
    git("add", ".")
    git("commit", "--quiet", "--message", "one")
    head = git("rev-parse", "HEAD")
    assert len(head) == 40
    assert git_commit(tmp_path / "repo") == git_commit(tmp_path / "repo" / "sub") == head
    (tmp_path / "repo" / "file").write_text("two")
    assert git_commit(tmp_path / "repo") == head + "+"


def test_without_git_the_commit_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit(ROOT) is None


def test_machine_libraries_and_commit_are_named():
    by = made_by()
    assert set(by["versions"]) == {"latentwire", "torch", "transformers", "accelerate"}
    assert by["versions"]["torch"] == torch.__version__
    assert by["git_commit"] == git_commit(ROOT)
    on = made_on(PartialState(cpu=True))
    assert on == {**by, "device": on["device"], "processes": 1}
    assert on["device"].startswith("cpu (")
