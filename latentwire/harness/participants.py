"""The processes that share work in a folder, so that no command removes what another one makes.

Main entries: `taking_part()`, `require_idle()`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from latentwire.harness.claims import CLAIMS, Owner, claimed
from latentwire.harness.ownership import BusyError

ENTRY = "entry"  # claim of the process that looks who is there
MOMENT = 0.02  # seconds between two tries to claim what others have for a moment


@contextlib.contextmanager
def taking_part(folder: Path, key: str) -> Iterator[None]:
    """Let other processes see, during the `with` block, that this one shares the work in a folder.

    Args:
        folder: The folder.
        key: A hash of everything that the work depends on.

    Raises:
        BusyError: Another process does other work there.
        NoLocksError: The file system has no locks.
    """
    own = f"{key}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:6]}"  # a process may take part several times
    with contextlib.ExitStack() as until_end:
        with contextlib.ExitStack() as entry:  # one at a time, so the first of several may begin
            _claim(entry, folder, ENTRY)
            _claim(until_end, folder, own)
            for name, owner in _claims_in(folder):
                if "." in name and name != own and not name.startswith(f"{key}."):
                    raise _busy(folder, owner, "other work")
        yield


def _claim(until_end: contextlib.ExitStack, folder: Path, name: str) -> None:
    """Claim something that other processes have for moments only, while they look who is there."""
    while not until_end.enter_context(claimed(folder / CLAIMS, name)):
        time.sleep(MOMENT)


def require_idle(folder: Path) -> None:
    """Check that no process works in a folder, before finished work is removed or moved.

    Raises:
        BusyError: A process does.
        NoLocksError: The file system has no locks.
    """
    for name, owner in _claims_in(folder):
        if name != ENTRY:
            raise _busy(folder, owner, "work")


def _claims_in(folder: Path) -> Iterator[tuple[str, Owner | None]]:
    """Yield the name and the owner of each claim in a folder; remove the claims of killed processes."""
    claims = folder / CLAIMS
    for path in sorted(claims.iterdir()) if claims.is_dir() else []:
        with claimed(claims, path.name) as is_free:
            owner = None if is_free else Owner.of(path)
        if not is_free:
            yield path.name, owner


def _busy(folder: Path, owner: Owner | None, work: str) -> BusyError:
    return BusyError(
        f"{folder}: {owner or 'another process'} does {work} there; wait until it ends, or choose another folder"
    )
