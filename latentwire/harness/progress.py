"""What the user sees while it runs: a live bar on a terminal, plain lines elsewhere; one process speaks."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType

from tqdm import tqdm

PLAIN_INTERVAL = 10.0  # seconds between two plain lines


def rank() -> int:
    """Return which of the launched processes this is; 0 where there is one."""
    return int(os.environ.get("RANK", "0"))


def is_main_process() -> bool:
    """Tell whether this process is the one that writes to the terminal (the first of those launched)."""
    return rank() == 0


def log(message: str) -> None:
    """Print a line of information to standard error, above any live bar."""
    if is_main_process():
        tqdm.write(message, file=sys.stderr)


class Progress:
    """Examples done, time left and a running score of one named piece of work.

    Args:
        name: What is being worked on, with its place among the others.
        total: Number of examples.
    """

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.done = name, total, 0
        self.live = sys.stderr.isatty()
        self.started = self.last_line = time.monotonic()
        self.bar = tqdm(
            total=total,
            desc=name,
            unit="ex",
            file=sys.stderr,
            leave=False,
            disable=not (self.live and is_main_process()),
            bar_format="{desc}  {bar:24} {n_fmt}/{total_fmt}  {remaining} left  {postfix}",
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.bar.close()

    def advance(self, examples: int, score: str) -> None:
        """Count `examples` more as done and show `score`, for instance 'F1 .512'."""
        self.done += examples
        self.bar.set_postfix_str(score, refresh=False)
        self.bar.update(examples)
        now = time.monotonic()
        if not self.live and (now - self.last_line >= PLAIN_INTERVAL or self.done == self.total):
            self.last_line = now
            left = (now - self.started) / self.done * (self.total - self.done)
            log(f"{self.name}  {self.done}/{self.total}  {left:.0f} s left  {score}")
