"""Record which code and machine made a result. Main entries: `made_by()`, `made_on()`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import accelerate
import torch
import transformers
from accelerate import PartialState

from latentwire.harness import __version__
from latentwire.harness.device import describe_machine
from latentwire.harness.paths import ROOT
from latentwire.harness.results import MadeBy, MadeOn


def made_by() -> MadeBy:
    """Return the versions of the libraries and the commit of this project, for a result file."""
    versions = {module.__name__: str(module.__version__) for module in (torch, transformers, accelerate)}
    return {"versions": {"latentwire": __version__, **versions}, "git_commit": git_commit(ROOT)}


def made_on(state: PartialState) -> MadeOn:
    """Return the device and the number of processes, together with `made_by()`."""
    return {"device": describe_machine(state.device), "processes": state.num_processes, **made_by()}


def git_commit(folder: Path) -> str | None:
    """Return the commit checked out in `folder`, with '+' if files differ from it; None outside a checkout."""

    def git(*arguments: str) -> str | None:
        try:
            completed = subprocess.run(
                ["git", "-C", str(folder), *arguments],  # noqa: S607
                capture_output=True,
                text=True,
                check=False,
                timeout=10,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return completed.stdout.strip() if completed.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    return commit + ("+" if git("status", "--porcelain") else "")
