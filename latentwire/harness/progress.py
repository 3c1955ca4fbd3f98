"""Messages and progress of a run, from one process only. Main entries: `log()`, `Progress`."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import Protocol

from tqdm import tqdm

WORKER = "LATENTWIRE_WORKER"  # environment variable with the number of a worker, see `latentwire.harness.workers`
PLAIN_INTERVAL = 10.0  # seconds between two lines of progress outside a terminal
_LISTENER: ContextVar[ProgressListener | None] = ContextVar("listener", default=None)


def rank() -> int:
    """Return the rank of this process among the launched processes; 0 if there is only one."""
    return int(os.environ.get("RANK", "0"))


def is_main_process() -> bool:
    """Return whether this is the main process (rank 0), which alone writes the files of a run."""
    return rank() == 0


def worker() -> int:
    """Return the number of this process among the workers of a command, from 1; 0 for the command's own process."""
    return int(os.environ.get(WORKER, "0"))


def may_speak() -> bool:
    """Return whether this process writes to the terminal: the main process of the command, and no worker."""
    return is_main_process() and worker() == 0


def log(message: str) -> None:
    """Print a line to standard error, above a live progress bar."""
    if may_speak():
        tqdm.write(message, file=sys.stderr)


class ProgressListener(Protocol):
    """Receives the progress of this process in place of its terminal."""

    def __call__(self, name: str, done: int, total: int) -> None:
        """Take note that `done` of the `total` examples of the work called `name` are done."""


@contextlib.contextmanager
def heard_by(listener: ProgressListener) -> Iterator[None]:
    """Send the progress of all work during the `with` block to a listener; the terminal does not show it."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


class Progress:
    """Progress of one piece of work: examples done, time left and a running score.

    A terminal shows a live bar. Elsewhere, a line is printed every PLAIN_INTERVAL seconds.

    Args:
        name: Name of the work, with its position among the others: '[3/35] baseline'.
        total: Number of examples.
    """

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.done = name, total, 0
        self.listener = _LISTENER.get()
        self.live = sys.stderr.isatty() and self.listener is None
        self.started = self.last_line = time.monotonic()
        self.bar = tqdm(
            total=total,
            desc=name,
            unit="ex",
            file=sys.stderr,
            leave=False,
            disable=not (self.live and may_speak()),
            bar_format="{desc}  {bar:24} {n_fmt}/{total_fmt}  {remaining} left  {postfix}",
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.bar.close()

    def advance(self, examples: int, score: str) -> None:
        """Add `examples` to the examples done and show `score`, for example 'F1 .512'."""
        self.done += examples
        if self.listener is not None:
            self.listener(self.name, self.done, self.total)
            return
        self.bar.set_postfix_str(score, refresh=False)
        self.bar.update(examples)
        now = time.monotonic()
        if not self.live and (now - self.last_line >= PLAIN_INTERVAL or self.done == self.total):
            self.last_line = now
            left = (now - self.started) / self.done * (self.total - self.done)
            log(f"{self.name}  {self.done}/{self.total}  {left:.0f} s left  {score}")
