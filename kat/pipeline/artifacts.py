"""Where the files lie that the tasks of kat hand on to one another, and what all these tasks refuse."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig

from latentwire.harness.errors import UserError
from latentwire.harness.results import ResultWriteError, read_json

T = TypeVar("T")

# What lies beside a file of the usual name; beside one of another name it has that name in front.
BESIDE = {
    "pairs_dropped.jsonl": "pairs_all.jsonl",
    "pairs.json": "pairs_all.jsonl",
    "pair_to_prompt.jsonl": "prompts_all.jsonl",
    "prompts.json": "prompts_all.jsonl",
    "density.json": "weights.jsonl",
    "density.png": "weights.jsonl",
}
WRITTEN_BY = {"pairs_file": "pairs", "prompts_file": "prompts", "embeddings_file": "embed", "weights_file": "density"}


def task(job: Callable[[DictConfig], T]) -> Callable[[DictConfig], T]:
    """Make a function a task of kat: a tracker is refused, and a file that cannot be written gets a fitting remedy."""

    @functools.wraps(job)
    def run(cfg: DictConfig) -> T:
        if cfg.tracker.name != "none":
            raise UserError(
                f"tracker={cfg.tracker.name}: task={cfg.task} reports to no tracker, its numbers are in the files it "
                "writes; leave tracker out"
            )
        try:
            return job(cfg)
        except ResultWriteError as error:
            raise ResultWriteError(error.path, error.reason, "folder=FOLDER (or out=FILE)") from error

    return run


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


def sidecar_path(path: Path, name: str) -> Path:
    """Return where the file of `BESIDE` lies that belongs to `path`: two results in a folder share none."""
    return path.with_name(name if path.name == BESIDE[name] else f"{path.stem}_{name}")


def destination(cfg: DictConfig, *sides: str, reads: Iterable[Path] = ()) -> Path:
    """Return the path of cfg.out, after a look at what writing it and what lies beside it would destroy.

    Args:
        cfg: The config.
        sides: Endings (.json) of files that are written beside it under its own stem.
        reads: Files that the task reads, besides those that the config names as *_file.

    Raises:
        UserError: It is an input, is called like what lies beside another file, or is its own side file.
    """
    out = locate(cfg, "out")
    if any(out.name == name or out.name.endswith(f"_{name}") for name in (*BESIDE, "embeddings.json")):
        raise UserError(f"out={cfg.out}: files of this name lie beside other results of kat; choose another name")
    if own := next((ending for ending in sides if out.with_suffix(ending) == out), None):
        raise UserError(f"out={cfg.out}: what lies beside it is called {out.stem}{own}; use another ending")
    inputs = {
        name: locate(cfg, name)
        for name in map(str, cfg)
        if name.endswith("_file") and cfg[name] and WRITTEN_BY.get(name) != cfg.task
    }
    inputs |= {f"path={path}": path for path in reads}
    written = {path.resolve() for path in (out, *map(out.with_suffix, sides))}
    if same := next((name for name, path in inputs.items() if path.resolve() in written), None):
        raise UserError(f"out={cfg.out}: would overwrite {same}, which other work stands on; choose another name")
    return out


def record_of(embeddings: Path) -> dict[str, Any]:
    """Return what task=embed wrote down about its embeddings; nothing where it did not make them."""
    path = embeddings.with_suffix(".json")
    found = read_json(path) if path.is_file() else {}
    return found if isinstance(found, dict) else {}
