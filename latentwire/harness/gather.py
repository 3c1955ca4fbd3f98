"""Exchange values and errors between processes. Main entries: `gather_from_all()`, `broadcast_from_main()`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

T = TypeVar("T")


def gather_from_all(state: PartialState, items: list[T]) -> list[T]:
    """Return, in every process, the items of all processes in the order of their ranks."""
    if state.num_processes == 1:
        return items
    return list(gather_object(items))


def in_every_process(state: PartialState, work: Callable[[], None]) -> None:
    """Run this process's share of the work. If one process fails, all raise, so none waits forever for another."""
    error = None
    try:
        work()
    except Exception as caught:  # raised below, in every process
        error = caught
    failures = [failure for failure in gather_from_all(state, [error]) if failure is not None]
    if failures:
        raise error or failures[0]


def broadcast_from_main(state: PartialState, value: T) -> T:
    """Return, in every process, the value of the main process. Use it for values that depend on files."""
    if state.num_processes == 1:
        return value
    box = [value]
    broadcast_object_list(box)
    return box[0]
