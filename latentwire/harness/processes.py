"""accelerate launch --cpu --num_processes N, made to start N processes.

Accelerate 1.x starts a single process for it unless MPI is set up. That process finds here what was asked of its
parent and hands over to torchrun, which starts all N.
"""

from __future__ import annotations

import os
import sys

import psutil

from latentwire.harness.errors import UserError

ADDED_BY_ACCELERATE = ("MASTER_ADDR", "MASTER_PORT")  # of a meeting point that torchrun chooses itself


def hand_over(arguments: list[str]) -> None:
    """Become torchrun with as many processes as accelerate launch was asked for; return where nothing is to do.

    Args:
        arguments: The command line of this program, without its name.

    Raises:
        UserError: Several were asked for, but how many is not on the parent's command line.
    """
    processes = _asked_for() if _alone_under_accelerate() else 1
    if processes < 2:
        return
    environment = {key: value for key, value in os.environ.items() if key not in ADDED_BY_ACCELERATE}
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    os.execve(sys.executable, [sys.executable, *torchrun, sys.argv[0], *arguments], environment)  # noqa: S606


def _alone_under_accelerate() -> bool:
    """Tell whether accelerate launch meant several processes, on a CPU, and started this one."""
    environment = os.environ
    return (
        environment.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1")
        and "MASTER_ADDR" in environment
        and not environment.keys() & {"RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"}
    )


def _asked_for() -> int:
    """Return --num_processes of the parent's command line, or 1 if the parent is another program."""
    parent = psutil.Process().parent()
    words = parent.cmdline() if parent else []
    if not any("accelerate" in word for word in words[:4]):
        return 1
    for name, value in zip(words, [*words[1:], ""], strict=True):
        name, _, inline = name.partition("=")
        if name in ("--num_processes", "--num-processes", "-n") and (inline or value).isdigit():
            return int(inline or value)
    raise UserError(
        "accelerate launch starts one process on a CPU, and how many were meant is not on its command line: add "
        "--num_processes N, or use torchrun --nproc_per_node N"
    )
