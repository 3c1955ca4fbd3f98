"""The processes that share work in a folder, so that no command removes what another one makes.

Main entries: `taking_part()`, `require_idle()`.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from latentwire.harness.claims import CLAIMS, Owner, claimed
from latentwire.harness.ownership import BusyError


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
    own = f"{key}.{socket.gethostname()}.{os.getpid()}"
    with claimed(folder / CLAIMS, own):
        for name, owner in _claims_in(folder):
            if "." in name and name != own and not name.startswith(f"{key}."):
                raise _busy(folder, owner, "other work")
        yield


def require_idle(folder: Path) -> None:
    """Check that no process works in a folder, before finished work is removed or moved.

    Raises:
        BusyError: A process does.
        NoLocksError: The file system has no locks.
    """
    for _, owner in _claims_in(folder):
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
