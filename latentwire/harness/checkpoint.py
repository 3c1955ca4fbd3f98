"""Checkpoints from which a training run resumes exactly, and checks of its folder. Main entry: `Checkpoints`."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from latentwire.harness.claims import CLAIMS
from latentwire.harness.errors import UserError
from latentwire.harness.progress import log
from latentwire.harness.registry import is_plugin_source
from latentwire.harness.results import (
    FORMAT,
    DamagedResultError,
    JsonObject,
    open_atomically,
    read_json,
    sweep_up,
    write_json,
    writing,
)

State = dict[str, Any]  # nested dicts and lists of tensors and plain values
CHECKPOINT = re.compile(r"step-(\d{8})\.pt")


class OtherConfigurationError(UserError):
    """The files in a folder belong to another configuration. The message names the settings that differ."""


class Checkpoints:
    """The checkpoints of one run: `step-00000020.pt` and so on. Each file is written completely or not at all.

    Args:
        folder: Folder of the checkpoints.
        identity: Settings and inputs of the run, as plain values. A run resumes only from checkpoints with the same
            identity.
        keep_checkpoints: Number of the newest checkpoints to keep.
    """

    def __init__(self, folder: Path, identity: JsonObject, keep_checkpoints: int = 2) -> None:
        if keep_checkpoints < 1:
            raise UserError(f"keep_checkpoints={keep_checkpoints}: a killed run could not resume; use 1 or more")
        self.folder, self.identity, self.keep_checkpoints = folder, identity, keep_checkpoints

    def save(self, step: int, state: State) -> None:
        """Write the state after `step` steps, then remove all but the newest `keep_checkpoints` files.

        Raises:
            ResultWriteError: The folder is not writable, or the disk is full. The older checkpoints are kept.
        """
        path = self.folder / f"step-{step:08d}.pt"
        with open_atomically(path) as file, writing(path):
            try:
                torch.save({"format": FORMAT, "step": step, "identity": self.identity, "state": state}, file)
            except RuntimeError as error:  # torch's file writer hides the cause, such as a full disk
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from error
                raise
        for _, old in self._saved()[: -self.keep_checkpoints]:
            old.unlink(missing_ok=True)

    def latest(self) -> tuple[int, State] | None:
        """Return the step and the state of the newest checkpoint, or None without checkpoints.

        A damaged checkpoint is reported and kept; the previous one is loaded in its place.

        Raises:
            UserError: The checkpoint belongs to another configuration, or all checkpoints are damaged.
        """
        sweep_up(self.folder)
        saved = self._saved()
        for step, path in reversed(saved):
            try:
                content = torch.load(path, map_location="cpu", weights_only=True)
                found, state, written_as = content["identity"], content["state"], content.get("format", 1)
            except Exception as error:  # a damaged archive raises many kinds of errors
                log(f"warning: {path} is damaged ({type(error).__name__}); loading the previous one")
                continue
            _require_format(written_as, str(path))
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


def finished_run(folder: Path, identity: JsonObject) -> JsonObject | None:
    """Return the result.json of a finished run in `folder`, or None.

    Raises:
        UserError: The finished run belongs to another configuration. The message names the differences.
    """
    path = folder / "result.json"
    if not path.is_file():
        return None
    result = read_json(path)
    if not isinstance(result, dict) or not isinstance(result.get("identity"), dict):
        raise DamagedResultError(
            f"{path} is not the result of a training run: move it away, or give another out=FOLDER"
        )
    _require_format(result.get("format", 1), str(path))
    require_same(result["identity"], identity, str(path))
    return result


def _require_format(written_as: object, where: str) -> None:
    """Refuse files of a run of another version, whose identity cannot be compared with this version's."""
    if written_as != FORMAT:
        raise OtherConfigurationError(
            f"{where} was written by another version of this project (format {written_as}, now {FORMAT}), which this "
            "version does not continue: give another out=FOLDER, or start anew with force=true (the old files move to "
            "replaced/)"
        )


def start_anew_once(folder: Path, checkpoints: Checkpoints) -> None:
    """Start a run anew for force=true, but continue a run that an earlier, killed force=true has begun.

    The file `anew.json` marks a run that force=true began. The mark is valid until the run is finished, and only if its
    checkpoints can be loaded.
    """
    marker = folder / "anew.json"
    if marker.is_file() and not (folder / "result.json").is_file():
        try:
            checkpoints.latest()
        except UserError as error:
            log(f"note: {error}")
        else:
            log(f"note: {folder} was begun anew by force=true and is not finished; continuing it")
            return
    start_anew(folder)
    write_json(marker, {"begun": "anew"})


def start_anew(folder: Path) -> None:
    """Move all files of `folder` to `folder`/replaced/NUMBER, so that no finished work is lost."""
    present = [path for path in folder.iterdir() if path.name not in ("replaced", CLAIMS)] if folder.is_dir() else []
    if not present:
        return
    number = 1 + max((int(p.name) for p in (folder / "replaced").glob("*") if p.name.isdigit()), default=0)
    target = folder / "replaced" / str(number)
    with writing(target):
        target.mkdir(parents=True)
        for path in present:
            shutil.move(path, target / path.name)
    log(f"note: moved the files of {folder} to {target}")


def require_same(found: object, wanted: JsonObject, where: str) -> None:
    """Check that files were made with the identity of this run.

    Args:
        found: Identity stored in the files.
        wanted: Identity of this run.
        where: Path of the files, for the message.

    Raises:
        OtherConfigurationError: The identities differ. The message names up to three settings with both values.
    """
    theirs, ours = dict(_flat(found)), dict(_flat(wanted))
    names = [name for name in sorted(theirs.keys() | ours.keys()) if theirs.get(name) != ours.get(name)]
    if not names:
        return
    differences = "; ".join(_difference(name, theirs, ours) for name in names[:3])
    more = f"; and {len(names) - 3} more" if len(names) > 3 else ""
    raise OtherConfigurationError(
        f"{where} belongs to another configuration ({differences}{more}): use the settings that made it, give another "
        "out=FOLDER, or start anew with force=true (the old files move to replaced/)"
    )


def _difference(name: str, theirs: dict[str, object], ours: dict[str, object]) -> str:
    """Return how a setting differs; a plugin's digests say nothing to the user, only that they differ."""
    if name in theirs and name in ours and None not in (theirs[name], ours[name]) and is_plugin_source(name):
        return f"{name}: its module was edited"
    return f"{name} was {theirs.get(name, 'not set')} and is {ours.get(name, 'not set')}"


def _flat(value: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the dotted name and the value of each leaf of nested dicts."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, list(value) if isinstance(value, tuple) else value
