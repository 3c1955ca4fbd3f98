"""Memory: how much to compute at a time, and what to say when it runs out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from latentwire.harness.device import describe_machine
from latentwire.harness.errors import UserError

# What torch says where it has no exception of its own: on a CPU, an Apple GPU, or from a library of CUDA.
OUT_OF_MEMORY = re.compile("out of memory|not enough memory|can't allocate memory|ALLOC_FAILED")


MEMORY_LIST = re.compile(" (?:Process [0-9]+ has|Including non-PyTorch|Of the allocated)")  # what follows is for others


def choose_batch_tokens(batch_tokens: int | str, device: torch.device, on_cpu: int = 4096) -> int:
    """Return how many positions to compute at a time; `auto` suits the kind of device, `on_cpu` is its CPU value.

    A CPU gains nothing from more rows than fill its matrix units, and its activations should stay in its caches.

    Raises:
        UserError: Neither `auto` nor a whole number above 0.
    """
    if batch_tokens == "auto":
        return on_cpu if device.type == "cpu" else 65536
    if isinstance(batch_tokens, int) and batch_tokens >= 1:
        return batch_tokens
    raise UserError(f"batch_tokens={batch_tokens}: expected auto or a whole number above 0")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception says that a device, or the machine, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None


def out_of_memory(error: BaseException) -> str:
    """Return what such an exception says of the device, without the list of all programs that hold its memory."""
    return MEMORY_LIST.split(" ".join(str(error).split()))[0] or type(error).__name__


@contextmanager
def within_memory(device: torch.device, settings: dict[str, Any]) -> Iterator[None]:
    """Say what to lower where memory runs out in what is done here.

    Args:
        device: It is done on.
        settings: What decides how much it takes, by name.

    Raises:
        UserError: Memory has run out; other errors pass as they are.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        told = ", ".join(f"{name}={value}" for name, value in settings.items())
        raise UserError(
            f"{told}: {describe_machine(device)} has no memory left for it ({out_of_memory(error)}); "
            f"lower {' or '.join(settings)}, or free the device of other programs"
        ) from error
