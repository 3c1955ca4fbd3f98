"""Tasks of this process in Slurm's queue, for submitit. Main entry: `watched_tasks()`.

submitit reads the states of its tasks from Slurm's accounts. Where a cluster keeps none, it waits forever for a task
that died. It does the same for a task that was preempted and not queued again. The queue knows both.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Collection, Iterator, Sequence

from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

from latentwire.harness.progress import log

GONE = "GONE"  # a task that the queue no longer lists, minutes after its end
ENDED = frozenset({"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
                   "PREEMPTED", "TIMEOUT", GONE})  # fmt: skip
INTERVAL = 60  # most seconds between two looks at the queue


class QueueWatcher(SlurmInfoWatcher):
    """Reads the states of this user's tasks with squeue.

    Attributes:
        all_over: Returns whether all jobs are finished. Tasks that have not begun by then are cancelled.
    """

    all_over: Callable[[], bool] = staticmethod(lambda: False)

    def __init__(self, delay_s: int = INTERVAL) -> None:
        super().__init__(delay_s=delay_s)
        self._cancelled: set[str] = set()

    def _make_command(self) -> list[str] | None:
        if not self._registered - self._finished:
            return None
        return ["squeue", "--me", "--array", "--states=all", "--noheader", "--format=%i|%T"]

    def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
        """Return the state of each task that has not ended before, by its number such as '17_0'.

        Args:
            string: What squeue printed.
        """
        text = string if isinstance(string, str) else string.decode()
        states = {number: state for number, _, state in (line.strip().partition("|") for line in text.splitlines())}
        waiting = self._registered - self._finished
        return {number: {"JobID": number, "State": states.get(number, GONE)} for number in waiting}

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        """Return whether a task has ended, and all others have too: until then they take over its jobs."""
        waiting = set(self.left(("PENDING",))) - self._cancelled
        if waiting and self.all_over():
            self._cancelled |= waiting
            _cancel(sorted(waiting))
        return self.get_state(job_id, mode=mode) in ENDED and not self.left()

    def left(self, states: Collection[str] = ()) -> list[str]:
        """Return the tasks that had not ended at the last look, in order.

        Args:
            states: Only tasks in one of these states; empty: in any.
        """
        found = {number: self.get_state(number, mode="cache") for number in sorted(self._registered)}
        return [n for n, state in found.items() if (state in states if states else state not in ENDED)]


def _cancel(tasks: Sequence[str]) -> None:
    subprocess.run(["scancel", *tasks], check=False)  # noqa: S607 (it prints what it could not cancel)


@contextlib.contextmanager
def watched_tasks(all_over: Callable[[], bool]) -> Iterator[None]:
    """Watch the tasks that submitit starts within the block, and cancel those that begin too late.

    After success, tasks that wait in the queue once more are cancelled: their jobs are done. Otherwise tasks that are
    left go on, and a message names them.

    Args:
        all_over: Returns whether all jobs are finished.
    """
    watcher = QueueWatcher()
    watcher.all_over = all_over
    SlurmJob.watcher = watcher
    try:
        yield
    except BaseException:
        watcher.update()
        if left := watcher.left():
            log(f"note: Slurm's tasks go on; scancel {' '.join(left)} ends them")
        raise
    watcher.update()
    if waiting := watcher.left(("PENDING", "COMPLETING")):  # running tasks have delivered their results, and end
        _cancel(waiting)
