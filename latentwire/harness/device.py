"""Device and processes of a run. Main entry: `accelerator_state()`."""

from __future__ import annotations

import platform

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from latentwire.harness.errors import UserError


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


def describe_machine(device: torch.device) -> str:
    """Return the name of the device for a result file: 'cpu (x86_64, 2 threads)'."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"
