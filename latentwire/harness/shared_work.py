"""Units of work that processes on one or several machines share through a folder. Main entry: `work_through()`.

A process claims a unit before it does it, so it does not need to know the others. They may start and end at any time.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from latentwire.harness.claims import CLAIMS, claimed
from latentwire.harness.errors import UserError

POLL = 0.2  # seconds between two looks at units that other processes have claimed


def work_through(
    folder: Path, names: Sequence[str], is_finished: Callable[[str], bool], work: Callable[[str], None]
) -> int:
    """Do the unfinished units together with all processes that call this with the same folder.

    Each process begins at another unit. It returns as soon as all units are finished, whoever finished them. A process
    that is killed loses the unit it was doing, and another one does it again. In rare cases two processes do the same
    unit. `work` must therefore write its result atomically, and the same result each time.

    Args:
        folder: A folder on a file system with locks that all processes share. It gets a folder `claims` for the time.
        names: Names of the units, usable as file names.
        is_finished: Returns whether the result of a unit is complete.
        work: Does a unit.

    Returns:
        The number of units that this process did.

    Raises:
        NoLocksError: The file system has no locks.
        UserError: A unit is still unfinished after its work.
    """
    claims, own = folder / CLAIMS, 0
    waiting = [name for name in _from_own_start(names) if not is_finished(name)]
    while waiting:
        left = []
        for name in waiting:
            with claimed(claims, name) as is_mine:
                if not is_mine:
                    left.append(name)
                elif not is_finished(name):
                    work(name)
                    own += 1
                    if not is_finished(name):
                        raise UserError(f"{folder}: {name} is not finished after its work; check the disk it is on")
        if len(left) == len(waiting):
            time.sleep(POLL)
        waiting = left
    return own


def _from_own_start(names: Sequence[str]) -> list[str]:
    """Return the names in order, beginning at a place that differs between processes."""
    start = hash((socket.gethostname(), os.getpid())) % max(len(names), 1)
    return [*names[start:], *names[:start]]
