"""Values of all processes: gathered, broadcast, and errors that stop every process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object


def gather_from_all(state: PartialState, items: list[Any]) -> list[Any]:
    """Return the items of every process, in the order of their ranks, in every process."""
    if state.num_processes == 1:
        return items
    return list(gather_object(items))


def in_every_process(state: PartialState, work: Callable[[], None]) -> None:
    """Do this process's share of the work; where one process fails, all do, and none waits for another for ever."""
    error = None
    try:
        work()
    except Exception as caught:  # raised below: here as it was, elsewhere as it came
        error = caught
    failures = [failure for failure in gather_from_all(state, [error]) if failure is not None]
    if failures:
        raise error or failures[0]


def broadcast_from_main(state: PartialState, value: Any) -> Any:
    """Return the first process's value in every process: what depends on files is decided by one."""
    if state.num_processes == 1:
        return value
    box = [value]
    broadcast_object_list(box)
    return box[0]
