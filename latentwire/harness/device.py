"""Accelerate: device, dtype, seeding and processes."""

from __future__ import annotations

import platform

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from latentwire.harness.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def accelerator_state(device: str = "auto") -> PartialState:
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


def describe_machine(device: torch.device) -> str:
    """Name the device in words for a result file."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"
