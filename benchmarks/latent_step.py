"""What a step of task=latent costs, and what share of the processor's peak it reaches.

python -m benchmarks.latent_step ratio=4 embed_transform=rms_matching loss=reading passages_per_step=2

It takes the settings of train.py task=latent, and `timed`, the number of steps of each kind. For each kind it prints
the median seconds of a step with its update:

- as it is;
- with the encoder's products in float32;
- with a copy of the shots' keys and values for each passage, to which gradients are computed and thrown away.

The three take turns, so that a busy machine slows all of them. The peak is measured on products of two 1,024 x 1,024
matrices in the LM's dtype. Operations are counted by PyTorch, matrix products only.

Main entry: `main()`.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.flop_counter import FlopCounterMode

from latentwire.harness.app import compose_config
from latentwire.harness.device import accelerator_state, describe_machine
from latentwire.harness.run import Run
from latentwire.harness.training import accelerator_of
from latentwire.latent_training.learning import LatentLearning
from latentwire.latent_training.settings import LatentSettings

SIZE = 1024
WARM_UP = 2  # steps of each kind before the timed ones


def peak(dtype: torch.dtype, device: torch.device, seconds: float = 1.0) -> float:
    """Return the measured GFLOP/s of products of two square matrices."""
    a, b = (torch.randn(SIZE, SIZE, device=device).to(dtype) for _ in range(2))
    best = 0.0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        begin = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * SIZE**3 / (time.perf_counter() - begin) / 1e9)
    return best


@contextmanager
def as_before(learning: LatentLearning, name: str) -> Iterator[None]:
    """Take back one of the savings while the context lasts: `float32` or `copies`; any other name changes nothing."""
    latents, reader = learning.latents, learning.objective.question_reader
    dtype, shares = latents.training_dtype, reader.shares
    latents.training_dtype = torch.float32 if name == "float32" else dtype
    reader.shares = shares and name != "copies"
    try:
        yield
    finally:
        latents.training_dtype, reader.shares = dtype, shares


def measure(learning: LatentLearning, kind: str, timed: int) -> tuple[dict[str, list[float]], float]:
    """Return the seconds of each timed step of a kind, by variant, and the operations of one step in GFLOP."""
    numbers = [number for number, step in enumerate(learning.plan, 1) if step.kind == kind][: timed + WARM_UP]
    seconds: dict[str, list[float]] = {"as it is": [], "float32": [], "copies": []}
    for place, number in enumerate(numbers):
        for name, own in seconds.items():
            with as_before(learning, name):
                found = float(learning.step(number).timings["seconds"])
            if place >= WARM_UP:
                own.append(found)
    with FlopCounterMode(display=False) as counter:
        learning.step(numbers[-1])
    return seconds, counter.get_total_flops() / 1e9


def main(arguments: list[str]) -> None:
    """Print the cost of a step of each kind."""
    timed = next((int(each.split("=")[1]) for each in arguments if each.startswith("timed=")), 10)
    chosen = [each for each in arguments if not each.startswith("timed=")]
    with tempfile.TemporaryDirectory() as folder:
        cfg = compose_config("train", ["task=latent", *chosen, f"out={folder}"])
        settings = LatentSettings.of(cfg)
        accelerator = accelerator_of(cfg)
        run = Run(cfg, settings.run, {"benchmark": "latent_step"}, accelerator_state(cfg.device))
        learning = LatentLearning(run, settings, accelerator)
        device = learning.state.device
        top = peak(settings.dtype, device)
        print(describe_machine(device), f"{settings.dtype}, {torch.get_num_threads()} threads, peak {top:.0f} GFLOP/s")
        print(f"{'step':16}{'seconds':>9}{'range':>16}{'GFLOP':>8}{'of the peak':>13}{'float32':>9}{'copies':>8}")
        for kind in dict.fromkeys(step.kind for step in learning.plan):
            seconds, work = measure(learning, kind, timed)
            usual, lower, copied = (statistics.median(own) for own in seconds.values())
            ends = f"{min(seconds['as it is']):.2f} to {max(seconds['as it is']):.2f}"
            print(
                f"{kind:16}{usual:>9.2f}{ends:>16}{work:>8.0f}{work / usual / top:>13.0%}"
                f"{lower / usual:>8.2f}x{copied / usual:>7.2f}x"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
