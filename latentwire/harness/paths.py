"""Paths of the project and of its config tree."""

from __future__ import annotations

from pathlib import Path

from latentwire.harness.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"


def config_file(group: str, name: str) -> Path:
    """Return the file of a choice in a config group, such as conf/model/smollm2.yaml.

    Raises:
        UserError: The group has no such choice. The message lists the valid ones.
    """
    path = CONF / group / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise UserError(f"{group}={name}: unknown; use one of {known}")
    return path
