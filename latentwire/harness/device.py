"""Device, dtype and processes of a run. Main entries: `accelerator_state()`, `choose_dtype()`."""

from __future__ import annotations

import platform

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from latentwire.harness.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def accelerator_state(device: str = "auto") -> PartialState:
    """Return Accelerate's state of this process: its device, its rank and the number of processes.

    Args:
        device: `auto` uses the device that Accelerate finds (CUDA, MPS, CPU, ...). `cpu` uses the CPU. The name of
            another kind requires that kind.

    Raises:
        UserError: Accelerate found another kind of device.
    """
    # On a CPU, Accelerate connects several processes only with cpu=True.
    on_cpu = device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state = PartialState(cpu=True) if on_cpu else PartialState()
    if device not in ("auto", state.device.type):
        raise UserError(
            f"device={device}: not available here, Accelerate found {state.device.type}; use device=auto, "
            "device=cpu, or start this run on a machine that has this device"
        )
    return state


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype of the computation. `auto` is bfloat16 on devices with fast bfloat16, otherwise float32.

    A CPU has fast bfloat16 only with AVX512-BF16 or AMX. Emulation was measured 500 times slower.

    Args:
        dtype: `auto` or a name in DTYPES.
        device: Device of the computation.

    Raises:
        UserError: The name is unknown.
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
    """Return the name of the device for a result file: 'cpu (x86_64, 2 threads)'."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"
