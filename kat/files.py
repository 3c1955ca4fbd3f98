"""Where the files lie that the tasks of kat hand on to one another."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from latentwire.harness.errors import UserError


def locate(cfg: DictConfig, name: str) -> Path:
    """Return the path of a file of kat: a name without a folder lies in cfg.folder, anything else where it says.

    Raises:
        UserError: No name given, or a folder where a file is wanted.
    """
    value = str(cfg[name] or "")
    if not value:
        raise UserError(f"{name}: no file given; write {name}=FILE")
    path = Path(value).expanduser()
    if len(path.parts) == 1 and not value.startswith("."):
        path = Path(cfg.folder).expanduser() / path
    if path.is_dir():
        raise UserError(f"{name}={value}: is a folder; write {name}=FILE")
    return path
