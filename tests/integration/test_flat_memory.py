"""The memory of a sweep does not grow with the number of its configurations."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from tests.helpers.programs import start

TINY = ["-m", "model=tiny_random", "device=cpu", "dtype=float32", "samples=2", "shots=0", "max_new_tokens=1",
        "embed_transform=anchor_offset", "out=many"]  # fmt: skip
FEW, MANY = 40, 200


@pytest.mark.slow
def test_200_configurations_need_the_memory_of_40(tmp_path):
    eps = ",".join(f"{number / 1000}" for number in range(1, MANY + 2))
    sweep = start("run", *TINY, f"eps={eps}", folder=tmp_path)
    process = psutil.Process(sweep.processes[0].pid)
    memory = {count: _memory_after(process, tmp_path / "many", count) for count in (FEW, MANY)}
    sweep.kill()
    assert memory[MANY] < 1.05 * memory[FEW], memory


def _memory_after(process: psutil.Process, folder: Path, count: int) -> int:
    """Return the bytes of a process once a folder has the predictions of `count` configurations."""
    deadline = time.monotonic() + 200
    while len(list(folder.glob("anchor*.predictions.jsonl"))) < count:
        assert process.is_running()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int(process.memory_info().rss)
