"""Save and restore everything a training loop needs to go on exactly, and tell whose run a folder holds."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from latentwire.harness.errors import UserError
from latentwire.harness.progress import log
from latentwire.harness.results import DamagedResultError, open_atomically, read_json, write_json, writing

State = dict[str, Any]  # nested dicts and lists of tensors and plain values
CHECKPOINT = re.compile(r"step-(\d{8})\.pt")


class OtherConfigurationError(UserError):
    """What lies in the folder was made by another configuration; the message names what differs."""


class Checkpoints:
    """The checkpoints of one run, `step-00000020.pt` and so on, each there whole or not at all.

    Args:
        folder: Where they lie.
        identity: What produces them, as plain values: a run goes on only from checkpoints of the same.
        keep: How many of the newest stay.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], keep: int = 2) -> None:
        if keep < 1:
            raise UserError(
                f"keep_checkpoints={keep}: at least one checkpoint must stay, or a killed run could not go on"
            )
        self.folder, self.identity, self.keep = folder, identity, keep

    def save(self, step: int, state: State) -> None:
        """Write the state after `step` steps, then remove the oldest beyond `keep`.

        Raises:
            ResultWriteError: The folder is not writable, or the disk is full; the older checkpoints are as they were.
        """
        path = self.folder / f"step-{step:08d}.pt"
        with open_atomically(path) as file, writing(path):
            try:
                torch.save({"step": step, "identity": self.identity, "state": state}, file)
            except RuntimeError as error:  # torch's own file writer hides the cause: a full disk
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from error
                raise
        for _, old in self._saved()[: -self.keep]:
            old.unlink(missing_ok=True)

    def latest(self) -> tuple[int, State] | None:
        """Return the newest step and its state, or None where there is no checkpoint.

        A damaged one is said aloud and left where it is; the one before it serves.

        Raises:
            UserError: The checkpoint is of another configuration (names what differs), or all are damaged.
        """
        if self.folder.is_dir():
            for leftover in self.folder.glob(".step-*.tmp"):
                leftover.unlink(missing_ok=True)
        saved = self._saved()
        for step, path in reversed(saved):
            try:
                content = torch.load(path, map_location="cpu", weights_only=True)
                found, state = content["identity"], content["state"]
            except Exception as error:  # whatever a damaged archive raises
                log(f"warning: {path} is damaged ({type(error).__name__}); going on from the one before it")
                continue
            require_same(found, self.identity, str(path))
            return step, state
        if saved:
            raise UserError(
                f"{self.folder}: none of its {len(saved)} checkpoints can be read; start anew with force=true"
            )
        return None

    def _saved(self) -> list[tuple[int, Path]]:
        if not self.folder.is_dir():
            return []
        found = [(match, path) for path in self.folder.iterdir() if (match := CHECKPOINT.fullmatch(path.name))]
        return sorted((int(match[1]), path) for match, path in found)


def finished_run(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Return the result.json of a run that is finished in `folder`, or None.

    Raises:
        UserError: The finished run is of another configuration; names what differs.
    """
    path = folder / "result.json"
    if not path.is_file():
        return None
    result = read_json(path)
    if not isinstance(result, dict) or not isinstance(result.get("identity"), dict):
        raise DamagedResultError(f"{path} is no result of a training run: move it away, or give another out=FOLDER")
    require_same(result["identity"], identity, str(path))
    return result


def start_anew_once(folder: Path, checkpoints: Checkpoints) -> None:
    """Do what force=true asks for: start anew, or go on with the run that a killed command of the same began anew.

    A marker, `anew.json`, tells such a run from one that was there before. It counts until the run is finished, and
    only while its checkpoints can be gone on with.
    """
    marker = folder / "anew.json"
    if marker.is_file() and not (folder / "result.json").is_file():
        try:
            checkpoints.latest()
        except UserError as error:
            log(f"note: {error}")
        else:
            log(f"note: {folder} was begun anew by force=true and is not finished; going on with it")
            return
    start_anew(folder)
    write_json(marker, {"begun": "anew"})


def start_anew(folder: Path) -> None:
    """Move what a run left in `folder` into `folder`/replaced: nothing finished is lost."""
    present = [path for path in folder.iterdir() if path.name != "replaced"] if folder.is_dir() else []
    if not present:
        return
    number = 1 + max((int(p.name) for p in (folder / "replaced").glob("*") if p.name.isdigit()), default=0)
    target = folder / "replaced" / str(number)
    with writing(target):
        target.mkdir(parents=True)
        for path in present:
            shutil.move(path, target / path.name)
    log(f"note: what was in {folder} is now in {target}")


def require_same(found: Any, wanted: dict[str, Any], where: str) -> None:
    """Refuse what was made by another configuration.

    Raises:
        OtherConfigurationError: Names up to three settings that differ, with both values.
    """
    theirs, ours = dict(_flat(found)), dict(_flat(wanted))
    names = [name for name in sorted(theirs.keys() | ours.keys()) if theirs.get(name) != ours.get(name)]
    if not names:
        return
    told = "; ".join(f"{n} was {theirs.get(n, 'not set')} and is {ours.get(n, 'not set')}" for n in names[:3])
    more = f"; and {len(names) - 3} more" if len(names) > 3 else ""
    raise OtherConfigurationError(
        f"{where} is of another configuration ({told}{more}): use the settings it was made with, give another "
        "out=FOLDER, or start anew with force=true (what is there moves to replaced/)"
    )


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the plain values of nested dicts under dotted names."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, list(value) if isinstance(value, tuple) else value
