"""Text that --help prints. Main entry: `help_text()`."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path

from latentwire.harness.paths import CONF


def help_text(entry: str, tasks: Iterable[str], about: str) -> str:
    """Return the purpose of the program, a line for each task, and where the settings are explained.

    Args:
        entry: Root of the config tree, `run` or `train`.
        tasks: Names of the tasks of this entry.
        about: Purpose of the entry, with example commands.
    """
    names = list(tasks)
    width = max(map(len, names)) + 4
    lines = [about.strip(), "", "Tasks, chosen with task=NAME:"]
    for name in names:
        description = textwrap.shorten(first_clause(CONF / "task" / f"{name}.yaml"), 100, placeholder=" ...")
        lines.append(f"  {name}".ljust(width) + description)
    return "\n".join(
        [
            *lines,
            "",
            f"All settings with their values: python {entry}.py --cfg job, with task=NAME for the settings of a task.",
            "Their meanings: docs/configuration.md. Options of Hydra itself, such as -m: --hydra-help.",
        ]
    )


def first_clause(path: Path) -> str:
    """Return the opening comment of a config file up to its first full stop, colon or semicolon."""
    lines = path.read_text(encoding="utf-8").splitlines()
    opening = itertools.takewhile(lambda line: line.startswith("#"), lines)
    comment = " ".join(line.lstrip("# ") for line in opening if "@package" not in line)
    return re.split(r"[.:;](?=\s|$)", comment)[0]
