"""Paths of the files that the kat tasks exchange, and checks against overwriting them. Main entry: `destination()`."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from omegaconf import DictConfig, OmegaConf

from latentwire.harness.device import accelerator_state
from latentwire.harness.errors import UserError
from latentwire.harness.ownership import deferring, owned
from latentwire.harness.results import JsonObject, ResultWriteError
from latentwire.harness.session import JobOf, Session, job
from latentwire.harness.shard_files import is_sharded
from latentwire.harness.worker_counts import own_workers

T = TypeVar("T")

# Each sidecar file, and the default name of the result that it accompanies.
SIDECARS = {
    "pairs_dropped.jsonl": "pairs_all.jsonl",
    "pairs.json": "pairs_all.jsonl",
    "pair_to_prompt.jsonl": "prompts_all.jsonl",
    "prompts.json": "prompts_all.jsonl",
    "density.json": "weights.jsonl",
    "density.png": "weights.jsonl",
}
WRITTEN_BY = {"pairs_file": "pairs", "prompts_file": "prompts", "embeddings_file": "embed", "weights_file": "density"}


def task(function: Callable[[DictConfig], T]) -> JobOf[T]:
    """Return a function as a task of kat, which rejects trackers and explains files that cannot be written."""

    @job
    @functools.wraps(function)
    def run(cfg: DictConfig, session: Session | None) -> T:
        if cfg.tracker.name != "none":
            raise UserError(
                f"tracker={cfg.tracker.name}: task={cfg.task} does not use a tracker, and its files contain all "
                "numbers; leave tracker out"
            )
        try:
            return function(cfg)
        except ResultWriteError as error:
            raise ResultWriteError(error.path, error.reason, "folder=FOLDER (or out=FILE)") from error

    return run


@contextlib.contextmanager
def only_writer(path: Path, cfg: DictConfig) -> Iterator[bool]:
    """Make a file during the `with` block, unless another process makes it. Call this in every process of torchrun.

    Yields:
        Whether this is the main process, which writes the file.

    Raises:
        BusyError: Another process makes the file. It may have other settings, so this one does not wait for it.
    """
    state = accelerator_state(cfg.device)
    with contextlib.ExitStack() as until_end:
        with deferring():
            until_end.enter_context(owned(path.parent, path.name, state))
        yield state.is_main_process


def require_one_process(cfg: DictConfig, setting: str, path: Path) -> None:
    """Check that no more than one process is to make a file.

    Args:
        cfg: The config.
        setting: The setting that would be a folder.
        path: Its path, one file.

    Raises:
        UserError: `workers` is more than 1.
    """
    if own_workers(cfg) > 1:
        raise UserError(
            f"workers={cfg.workers}: processes share the shards of a folder, and {path} is one file; give a name "
            f"without an ending, such as {setting}={path.stem}, or leave out workers"
        )


def require_one_division(cfg: DictConfig, processes: int) -> None:
    """Check that either workers or the processes of torchrun divide a folder of shards.

    Args:
        cfg: The config.
        processes: Number of processes that torchrun has started, or 1.

    Raises:
        UserError: Workers would start in each process of torchrun.
    """
    if own_workers(cfg) > 1 and processes > 1:
        raise UserError(f"workers={cfg.workers}: torchrun has started {processes} processes, which share the shards "
                        "already; leave out workers")  # fmt: skip


def writes_shards(cfg: DictConfig) -> bool:
    """Return whether the result of a task is a folder of shards, which processes divide."""
    return is_sharded(locate(cfg, "out", folder=True))


def require_own_folder(out: Path, own: re.Pattern[str]) -> None:
    """Check that a path is new, or a folder with nothing but files of a task.

    Args:
        out: The path.
        own: The names of the task's files.

    Raises:
        UserError: It is a file, or the folder has other files.
    """
    if out.is_file():
        raise UserError(f"out={out}: is a file, and a name without an ending is a folder; choose another name")
    entries = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if other := next((name for name in entries if not own.fullmatch(name)), None):
        raise UserError(f"out={out}: the folder has files of another kind, such as {other}; choose a new folder")


def locate(cfg: DictConfig, name: str, *, folder: bool = False) -> Path:
    """Return the path of a file of kat. A name without a folder is placed in cfg.folder.

    Prompts of the user's own are looked for in the working folder first. They may always be a folder.

    Args:
        cfg: The config.
        name: The setting with the path, such as pairs_file.
        folder: Whether the path may be a folder of shards.

    Raises:
        UserError: The setting is empty, or its path is a folder and must not be one.
    """
    value = str(cfg[name] or "")
    if not value:
        raise UserError(f"{name}: no file given; write {name}=FILE")
    path = Path(value).expanduser()
    if len(path.parts) == 1 and not value.startswith("."):
        shared = Path(cfg.folder).expanduser() / path
        may_be_own = name == "prompts_file" and path.name not in SIDECARS.values()
        path = path if may_be_own and path.exists() else shared
    if path.is_dir() and not folder and name != "prompts_file":
        raise UserError(f"{name}={value}: is a folder; write {name}=FILE")
    return path


def sampler_settings(cfg: DictConfig) -> JsonObject:
    """Return the settings of the arm that a config chooses: the node `sampler` without the name."""
    node = OmegaConf.to_container(cfg.sampler, resolve=True)
    assert isinstance(node, dict)
    return {str(key): value for key, value in node.items() if key != "name"}


def sidecar_path(path: Path, name: str) -> Path:
    """Return the path of a result's sidecar file. Each result in a folder has its own.

    Args:
        path: The result.
        name: The kind of sidecar, a key of `SIDECARS`. If the result does not have
            the default name, the sidecar's name begins with the name of the result.
    """
    return path.with_name(name if path.name == SIDECARS[name] else f"{path.stem}_{name}")


def destination(
    cfg: DictConfig, *sides: str, reads: Iterable[Path] = (), folder: bool = False, setting: str = "out"
) -> Path:
    """Return the path of cfg.out, after a check that the task will not overwrite other files.

    Args:
        cfg: The config.
        sides: The endings of further files that the task writes with the same stem, such as .json.
        reads: Input files in addition to the *_file settings of the config.
        folder: Whether the path may be a folder of shards.
        setting: The setting with the path.

    Raises:
        UserError: The path is an input or inside one, has the name of a sidecar file, or has one of the endings in
            `sides`.
    """
    out, given = locate(cfg, setting, folder=folder), f"{setting}={cfg[setting]}"
    if any(out.name == name or out.name.endswith(f"_{name}") for name in (*SIDECARS, "embeddings.json")):
        raise UserError(
            f"{given}: this name is reserved for files that kat tasks write next to their results; choose another name"
        )
    if own := next((ending for ending in sides if out.with_suffix(ending) == out), None):
        raise UserError(f"{given}: the task also writes a file {out.stem}{own}; use another ending")
    inputs = {
        name: locate(cfg, name, folder=True)
        for name in map(str, cfg)
        if name.endswith("_file") and cfg[name] and WRITTEN_BY.get(name) != cfg.task
    }
    inputs |= {f"path={path}": path for path in reads}
    written = {path.resolve() for path in (out, *map(out.with_suffix, sides))}
    if same := next((name for name, path in inputs.items() if path.resolve() in written), None):
        raise UserError(f"{given}: would overwrite {same}, which other tasks need; choose another name")
    if above := next((name for name, path in inputs.items() if path.resolve() in out.resolve().parents), None):
        raise UserError(f"{given}: is inside {above}, which other tasks need; choose another folder")
    return out


def output_folder(cfg: DictConfig, default: Path) -> Path:
    """Return the folder cfg.out, or the default if out is not set.

    Raises:
        UserError: The path is a file.
    """
    out = Path(str(cfg.out)).expanduser() if cfg.out else default
    if out.is_file():
        raise UserError(f"out={cfg.out or out}: is a file; write out=FOLDER")
    return out
