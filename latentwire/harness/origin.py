"""Where a result comes from: the machine, the libraries and the commit."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from accelerate import PartialState

from latentwire.harness import __version__
from latentwire.harness.device import describe_machine
from latentwire.harness.paths import ROOT


def made_by() -> dict[str, Any]:
    """Return what every result says of the code that made it."""
    versions = {module.__name__: module.__version__ for module in (torch, transformers, accelerate)}
    return {"versions": {"latentwire": __version__, **versions}, "git_commit": git_commit(ROOT)}


def made_on(state: PartialState) -> dict[str, Any]:
    """Return the same, and the machine that a model ran on."""
    return {"device": describe_machine(state.device), "processes": state.num_processes, **made_by()}


def git_commit(folder: Path) -> str | None:
    """Return the commit checked out in `folder`, with '+' if the tree has changes; None outside a checkout."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments],  # noqa: S607
                capture_output=True,
                text=True,
                check=False,
                timeout=10,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    return commit + ("+" if git("status", "--porcelain") else "")
