"""Units of work that processes on one or several machines share through a folder.

Main entries: `work_through()` for all units, `claimed()` for one.

A process claims a unit with a lock on a file in a folder that all processes see, so it does not need to know the
others. They may start and end at any time. The operating system gives the lock of a killed process free.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from latentwire.harness.errors import UserError
from latentwire.harness.results import writing

POLL = 0.2  # seconds between two looks at units that other processes have claimed
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # errors of a file system without locks


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
        UserError: The file system has no locks, or a unit is still unfinished after its work.
    """
    claims, own = folder / "claims", 0
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
    with contextlib.suppress(OSError):  # another process may still have a claim in it
        claims.rmdir()
    return own


@contextlib.contextmanager
def claimed(claims: Path, name: str) -> Iterator[bool]:
    """Claim a unit of work during the `with` block, if no other process has claimed it.

    Args:
        claims: Folder of the claims, on a file system with locks that all processes share. It is made if missing.
        name: Name of the unit, usable as a file name.

    Yields:
        Whether the unit is this process's own.

    Raises:
        UserError: The file system has no locks.
    """
    lock = _claim(claims / name)
    if lock is None:
        yield False
        return
    try:
        yield True
    finally:
        (claims / name).unlink(missing_ok=True)
        lock.release()


def _from_own_start(names: Sequence[str]) -> list[str]:
    """Return the names in order, beginning at a place that differs between processes."""
    start = hash((socket.gethostname(), os.getpid())) % max(len(names), 1)
    return [*names[start:], *names[:start]]


def _claim(path: Path) -> BaseFileLock | None:
    """Return a held lock, or None if another process holds it."""
    lock = FileLock(path, blocking=False)
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            return None
        except (FileNotFoundError, FileExistsError):
            if path.parent.is_file():
                raise
            return None  # a process that saw all units finished removed the folder at this moment
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise
            raise _no_locks(path) from error
    if isinstance(lock, SoftFileLock):  # a file that a killed process would leave, so its unit would never be free
        lock.release()
        raise _no_locks(path)
    return lock


def _no_locks(path: Path) -> UserError:
    return UserError(f"{path.parent}: the file system has no locks, so processes cannot share work there; choose "
                     "another folder")  # fmt: skip
