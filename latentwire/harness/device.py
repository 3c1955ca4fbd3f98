"""Accelerate: device, dtype, seeding and processes."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env

from latentwire.harness.errors import UserError

# What torch says where it has no exception of its own: on a CPU, an Apple GPU, or from a library of CUDA.
OUT_OF_MEMORY = re.compile("out of memory|not enough memory|can't allocate memory|ALLOC_FAILED")
MEMORY_LIST = re.compile(" (?:Process [0-9]+ has|Including non-PyTorch|Of the allocated)")  # what follows is for others
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def place(device: str = "auto") -> PartialState:
    """Return Accelerate's state for this process: its device, its rank and how many there are.

    Args:
        device: `auto` takes what Accelerate finds (CUDA, MPS, CPU, ...); `cpu` keeps to the CPU; the name of
            another kind demands it.

    Raises:
        UserError: The demanded kind of device is not the one found here.
    """
    # Accelerate makes several processes on a CPU know of one another only if it is told that it is a CPU.
    on_cpu = device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state = PartialState(cpu=True) if on_cpu else PartialState()
    if device not in ("auto", state.device.type):
        raise UserError(
            f"device={device}: not available here, Accelerate found {state.device.type}; use device=auto, "
            "device=cpu, or start this run on a machine that has one"
        )
    return state


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype to compute in; `auto` is bfloat16 where the device is fast at it, else float32.

    A CPU is fast at bfloat16 only with AVX512-BF16 or AMX: emulation was measured 500 times slower.

    Raises:
        UserError: An unknown name.
    """
    if dtype in DTYPES:
        return DTYPES[dtype]
    if dtype != "auto":
        raise UserError(f"dtype={dtype}: unknown; use auto or one of {', '.join(DTYPES)}")
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "mps":
        fast = torch.backends.mps.is_macos_or_newer(14, 0)
    elif device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        fast = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    else:
        fast = False
    return torch.bfloat16 if fast else torch.float32


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


def generator_for(seed: int, *names: object) -> torch.Generator:
    """Return a CPU generator that depends on the seed and the names alone.

    Naming the purpose and the example makes randomness independent of order, batch and process.
    """
    text = "\x1f".join(str(part) for part in (seed, *names))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") % 2**63)


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


def describe_machine(device: torch.device) -> str:
    """Name the device in words for a result file."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def from_first(state: PartialState, value: Any) -> Any:
    """Return the first process's value in every process: what depends on files is decided by one."""
    if state.num_processes == 1:
        return value
    box = [value]
    broadcast_object_list(box)
    return box[0]
