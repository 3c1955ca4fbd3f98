"""More processes of one job on this machine. Main entry: `started_workers()`.

They run the same job function on the same config, and share its units of work, see `latentwire.harness.shared_work`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import torch
from omegaconf import DictConfig, OmegaConf

from latentwire.harness.errors import UserError
from latentwire.harness.plugins import load_plugins, plugin_names
from latentwire.harness.progress import WORKER, log
from latentwire.harness.session import load_function
from latentwire.harness.worker_counts import require_workers


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
            process.communicate()  # closes its standard input


def _plain(cfg: DictConfig) -> dict[str, object]:
    node = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(node, dict)
    return {str(name): value for name, value in node.items()}


def _start(request: str, number: int, threads: int) -> subprocess.Popen[str]:
    environment = {**os.environ, WORKER: str(number), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "latentwire.harness.workers"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended already, and its status is reported at the end
        process.stdin.write(f"{request}\n")
        process.stdin.flush()
    return process


def main() -> None:
    """Run the job that a line of standard input describes, unless the process that started this one ends before."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends this process
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cfg = OmegaConf.create(request["cfg"])
    load_plugins(plugin_names(cfg.get("plugins", [])))
    try:
        load_function(request["run"])(cfg)
    except UserError as error:
        sys.exit(f"worker: {error}")


def _end_with_parent() -> None:
    """End this process as soon as its parent does: the system then closes standard input."""
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
