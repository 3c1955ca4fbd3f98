"""Start all processes of `accelerate launch --cpu --num_processes N`. Main entry: `start_all_processes()`.

Also the message for the others when one of them ends early: `lost_process()`.

Without MPI, Accelerate 1.x starts only one process for this command. That process reads the number of processes from
its parent's command line and becomes torchrun, which starts all N.
"""

from __future__ import annotations

import os
import re
import sys

import psutil

from latentwire.harness.errors import UserError

# In messages of the libraries that connect processes, when the other end is gone.
LOST = re.compile("connection (closed|reset|refused)|broken pipe|ncclRemoteError|ncclSystemError|timed out", re.I)
ADDED_BY_ACCELERATE = ("MASTER_ADDR", "MASTER_PORT")  # torchrun chooses an address and a port itself


def start_all_processes(arguments: list[str]) -> None:
    """Become torchrun if accelerate launch meant to start several processes on a CPU; otherwise return.

    Args:
        arguments: Command line of this program, without its name.

    Raises:
        UserError: The number of processes is not on the command line of accelerate launch.
    """
    processes = _requested_processes() if _alone_under_accelerate() else 1
    if processes < 2:
        return
    environment = {key: value for key, value in os.environ.items() if key not in ADDED_BY_ACCELERATE}
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    os.execve(sys.executable, [sys.executable, *torchrun, sys.argv[0], *arguments], environment)  # noqa: S606


def lost_process(error: BaseException) -> str | None:
    """Return the message for an error of the connection between processes: another process has ended; else None."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or not isinstance(error, RuntimeError):
        return None
    if not LOST.search(str(error)):
        return None
    return (
        "another process of this command has ended, so this one ends too; run the same command again, and it goes on "
        "from its last checkpoint or result"
    )


def _alone_under_accelerate() -> bool:
    """Return whether accelerate launch meant several processes on a CPU and started only this one."""
    environment = os.environ
    return (
        environment.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1")
        and "MASTER_ADDR" in environment
        and not environment.keys() & {"RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"}
    )


def _requested_processes() -> int:
    """Return --num_processes of the parent's command line, or 1 if the parent is not accelerate launch."""
    parent = psutil.Process().parent()
    words = parent.cmdline() if parent else []
    if not any("accelerate" in word for word in words[:4]):
        return 1
    for name, value in zip(words, [*words[1:], ""], strict=True):
        name, _, inline = name.partition("=")
        if name in ("--num_processes", "--num-processes", "-n") and (inline or value).isdigit():
            return int(inline or value)
    raise UserError(
        "accelerate launch: starts one process on a CPU, and its command line does not give the number of processes; "
        "add --num_processes N, or use torchrun --nproc_per_node N"
    )
