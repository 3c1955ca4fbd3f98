"""Batch sizes that fit into memory, and messages when memory runs out. Main entry: `within_memory()`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from latentwire.harness.device import describe_machine
from latentwire.harness.errors import UserError

# Messages of torch's RuntimeError on a CPU, on an Apple GPU and from CUDA libraries.
OUT_OF_MEMORY = re.compile("out of memory|not enough memory|can't allocate memory|ALLOC_FAILED")
# Beginning of the list of programs that hold the device's memory.
MEMORY_LIST = re.compile(" (?:Process [0-9]+ has|Including non-PyTorch|Of the allocated)")


def choose_batch_tokens(batch_tokens: int | str, device: torch.device, on_cpu: int = 4096) -> int:
    """Return the number of token positions to compute at a time.

    A CPU gains no speed from larger batches, and smaller activations stay in its caches.

    Args:
        batch_tokens: Number of positions, or `auto` for a value that suits the device.
        device: Device of the computation.
        on_cpu: Value of `auto` on a CPU. On other devices `auto` is 65,536.

    Raises:
        UserError: `batch_tokens` is neither `auto` nor a whole number above 0.
    """
    if batch_tokens == "auto":
        return on_cpu if device.type == "cpu" else 65536
    if isinstance(batch_tokens, int) and batch_tokens >= 1:
        return batch_tokens
    raise UserError(f"batch_tokens={batch_tokens}: expected auto or a whole number above 0")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception reports that a device or the machine has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None


def out_of_memory(error: BaseException) -> str:
    """Return the message of an out-of-memory error, without its list of the programs that hold memory."""
    return MEMORY_LIST.split(" ".join(str(error).split()))[0] or type(error).__name__


@contextmanager
def within_memory(device: torch.device, settings: Mapping[str, object]) -> Iterator[None]:
    """Raise an error that names the settings to lower if memory runs out inside the `with` block.

    Args:
        device: Device of the computation.
        settings: Values of the settings that determine the memory use, by name.

    Raises:
        UserError: Memory ran out. Other errors are raised unchanged.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        values = ", ".join(f"{name}={value}" for name, value in settings.items())
        raise UserError(
            f"{values}: {describe_machine(device)} has no memory left for it ({out_of_memory(error)}); "
            f"lower {' or '.join(settings)}, or close other programs that use the device"
        ) from error
