"""Tasks of this process in Slurm's queue, for submitit. Main entry: `watched_tasks()`.

submitit reads the states of its tasks from Slurm's accounts. Where a cluster keeps none, it waits forever for a task
that died. It does the same for a task that was preempted and not queued again. The queue knows both.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Collection, Iterator

from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

from latentwire.harness.progress import log

GONE = "GONE"  # a task that the queue no longer lists, minutes after its end
ENDED = frozenset({"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
                   "PREEMPTED", "TIMEOUT", GONE})  # fmt: skip
INTERVAL = 60  # most seconds between two looks at the queue


class QueueWatcher(SlurmInfoWatcher):
    """Reads the states of this user's tasks with squeue."""

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
        return self.get_state(job_id, mode=mode) in ENDED and not self.left()

    def left(self, states: Collection[str] = ()) -> list[str]:
        """Return the tasks that had not ended at the last look, in order.

        Args:
            states: Only tasks in one of these states; empty: in any.
        """
        found = {number: self.get_state(number, mode="cache") for number in sorted(self._registered)}
        return [n for n, state in found.items() if (state in states if states else state not in ENDED)]


@contextlib.contextmanager
def watched_tasks() -> Iterator[None]:
    """Watch the tasks that submitit starts within the block.

    After success, tasks that wait in the queue once more are cancelled: their jobs are done. Otherwise tasks that are
    left go on, and a message names them.
    """
    watcher = QueueWatcher(delay_s=INTERVAL)
    SlurmJob.watcher = watcher
    try:
        yield
    except BaseException:
        watcher.update()
        if left := watcher.left():
            log(f"note: Slurm's tasks go on; scancel {' '.join(left)} ends them")
        raise
    watcher.update()
    # Running tasks have delivered their results, and end. scancel prints what it could not cancel.
    if waiting := watcher.left(("PENDING", "COMPLETING")):
        subprocess.run(["scancel", *waiting], check=False)  # noqa: S607
