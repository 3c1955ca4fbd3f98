"""Claims on work: one process at a time does a piece of work, on one or several machines with a common folder.

Main entry: `claimed()`.

A claim is a lock on a file. The operating system gives the lock of a killed process free, so no claim outlives its
process. The file names its owner for the messages of the others.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from latentwire.harness.errors import UserError
from latentwire.harness.results import writing

CLAIMS = "claims"  # folder of the claims, in the folder of the results
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # errors of a file system without locks


@dataclass(frozen=True)
class Owner:
    """The process that has a claim.

    Attributes:
        host: Name of its machine.
        pid: Its number there.
        since: When it made the claim, such as "2026-01-31 17:05:12" in the clock of its machine.
    """

    host: str
    pid: int
    since: str

    @classmethod
    def this_process(cls) -> Self:
        """Return this process, with the current time."""
        return cls(socket.gethostname(), os.getpid(), datetime.now().isoformat(" ", "seconds"))

    @classmethod
    def of(cls, path: Path) -> Self | None:
        """Return the owner that a claim's file names; None if it names none, for instance at its first moment."""
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
            return cls(str(read["host"]), int(read["pid"]), str(read["since"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class NoLocksError(UserError):
    """The file system of a folder has no locks."""


@contextlib.contextmanager
def claimed(claims: Path, name: str) -> Iterator[bool]:
    """Claim a piece of work during the `with` block, if no other process has claimed it.

    Args:
        claims: Folder of the claims, on a file system with locks that all processes share. It is made if missing, and
            removed after the last claim.
        name: Name of the work, usable as a file name.

    Yields:
        Whether the work is this process's own.

    Raises:
        NoLocksError: The file system has no locks.
        ResultWriteError: The folder is not writable.
    """
    lock = _claim(claims / name)
    if lock is None:
        yield False
        return
    try:
        yield True
    finally:
        _give_back(lock, claims / name)


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
            return None  # the owner of the last claim removed the folder at this moment
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise
            with contextlib.suppress(OSError):
                if not path.stat().st_size:  # else it names an owner: locks can also fail for a moment
                    _give_back(lock, path)
            raise _no_locks(path) from error
    if isinstance(lock, SoftFileLock):  # a file that a killed process would leave, so its work would never be free
        _give_back(lock, path)
        raise _no_locks(path)
    try:
        with writing(path):
            path.write_text(json.dumps(vars(Owner.this_process())), encoding="utf-8")
    except BaseException:
        _give_back(lock, path)
        raise
    return lock


def _give_back(lock: BaseFileLock, path: Path) -> None:
    path.unlink(missing_ok=True)
    lock.release()
    with contextlib.suppress(OSError):  # other claims are in it
        path.parent.rmdir()


def _no_locks(path: Path) -> NoLocksError:
    return NoLocksError(f"{path.parent}: the file system has no locks, so processes cannot share work there; choose "
                        "another folder")  # fmt: skip
