"""More processes of one job on this machine. Main entry: `started_workers()`.

They run the same job function on the same config, and share its units of work, see `latentwire.harness.shared_work`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import torch
from omegaconf import DictConfig, OmegaConf

from latentwire.harness.errors import UserError
from latentwire.harness.plugins import load_plugins, plugin_names
from latentwire.harness.progress import log
from latentwire.harness.session import load_function


@contextlib.contextmanager
def started_workers(run: str, cfg: DictConfig, workers: int) -> Iterator[None]:
    """Run a job in workers - 1 more processes during the `with` block, which does its own share, and wait for them.

    Each process gets an equal share of this process's threads. If the block fails, the processes are ended. If one of
    them fails, its units are left to the others, so this is only reported.

    Args:
        run: The job as 'module:function'. It is called with the config, in which `workers` is 1.
        cfg: The config.
        workers: Number of processes, this one included.

    Raises:
        UserError: The number is not a whole number above 0.
    """
    require_workers(workers)
    threads = torch.get_num_threads()
    share = max(1, threads // workers)
    request = json.dumps({"run": run, "cfg": {**_plain(cfg), "workers": 1}})
    processes: list[subprocess.Popen[str]] = []
    try:
        for number in range(1, workers):
            processes.append(_start(request, number, share))
        torch.set_num_threads(share if workers > 1 else threads)
        yield
        for process in processes:
            process.wait()
            if process.returncode:
                log(f"warning: a worker ended with status {process.returncode}; the others did its share")
    finally:
        torch.set_num_threads(threads)
        for process in processes:
            if process.poll() is None:
                process.terminate()
                process.wait()


def require_workers(workers: object) -> None:
    """Check a number of processes.

    Raises:
        UserError: It is not a whole number above 0.
    """
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
        raise UserError(f"workers={workers}: must be a whole number of processes, at least 1")


def _plain(cfg: DictConfig) -> dict[str, object]:
    node = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(node, dict)
    return {str(name): value for name, value in node.items()}


def _start(request: str, number: int, threads: int) -> subprocess.Popen[str]:
    # RANK keeps a worker from writing to the terminal: only rank 0 does.
    environment = {**os.environ, "RANK": str(number), "OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen(
        [sys.executable, "-m", "latentwire.harness.workers"], stdin=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended already, and its status is reported at the end
        process.stdin.write(request)
        process.stdin.close()
    return process


def main() -> None:
    """Run the job that standard input describes."""
    request = json.load(sys.stdin)
    cfg = OmegaConf.create(request["cfg"])
    load_plugins(plugin_names(cfg.get("plugins", [])))
    try:
        load_function(request["run"])(cfg)
    except UserError as error:
        sys.exit(f"worker: {error}")


if __name__ == "__main__":
    main()
