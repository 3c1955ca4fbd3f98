"""Work that must be done, by this process or by the one that has claimed it. Main entry: `owned()`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from accelerate import PartialState

from latentwire.harness.claims import CLAIMS, NoLocksError, Owner, claimed
from latentwire.harness.errors import UserError
from latentwire.harness.gather import broadcast_from_main
from latentwire.harness.progress import log

POLL = 0.5  # seconds between two looks at a claim of another process
_DEFERS = ContextVar("defers", default=False)


class BusyError(UserError):
    """Another process does this work at the moment."""


@contextlib.contextmanager
def deferring() -> Iterator[None]:
    """Let `owned()` raise BusyError during the `with` block instead of waiting, so that other work goes first."""
    token = _DEFERS.set(True)
    try:
        yield
    finally:
        _DEFERS.reset(token)


def is_deferring() -> bool:
    """Return whether this is within `deferring()`."""
    return _DEFERS.get()


@contextlib.contextmanager
def owned(folder: Path, name: str, state: PartialState | None) -> Iterator[None]:
    """Own a piece of work during the `with` block. The main process claims it for all processes of the job.

    It waits for another owner, except within `deferring()` and in a job of several processes, whose connections would
    time out. The work may be finished when the block begins, by the process that owned it before.

    Args:
        folder: Folder of the results.
        name: Name of the work, usable as a file name.
        state: Processes of the job; None if only this one has the work.
    Raises:
        BusyError: Another process owns it, and this job does not wait.
        ResultWriteError: The folder is not writable.
    """
    with contextlib.ExitStack() as until_end:
        refusal: UserError | None = None
        if state is None or state.is_main_process:
            is_alone = state is None or state.num_processes == 1
            try:
                until_end.enter_context(_own(folder, name, wait=is_alone and not _DEFERS.get()))
            except UserError as error:
                refusal = error
        refusal = refusal if state is None else broadcast_from_main(state, refusal)
        if refusal is not None:
            raise refusal
        yield


@contextlib.contextmanager
def _own(folder: Path, name: str, *, wait: bool) -> Iterator[None]:
    existed = folder.exists()
    try:
        with _claim_of(folder, name, wait=wait):
            yield
    finally:
        if not existed:
            with contextlib.suppress(OSError):  # it has results, or was never made
                folder.rmdir()


@contextlib.contextmanager
def _claim_of(folder: Path, name: str, *, wait: bool) -> Iterator[None]:
    claims, told = folder / CLAIMS, None
    while True:
        with contextlib.ExitStack() as until_end:
            try:
                is_mine = until_end.enter_context(claimed(claims, name))
            except NoLocksError:
                log(f"note: {folder} is on a file system without locks; do not run two commands in it at once")
                is_mine = True
            if is_mine:
                yield
                return
        owner = Owner.of(claims / name)
        if not wait:
            raise BusyError(
                f"{name}: {owner or 'another process'} is at work on it in {folder}; wait until it ends, or choose "
                "another folder with out=FOLDER"
            )
        if owner is not None and owner != told:
            log(f"{name}: waiting for {owner}, which is at work on it")
            told = owner
        time.sleep(POLL)
