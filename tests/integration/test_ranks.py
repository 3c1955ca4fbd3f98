"""Several processes of one command, of which one is killed: the others end with a message, and nothing is lost."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from latentwire.harness.results import read_json
from tests.helpers.programs import start

SMALL = ["task=latent", "model=tiny_random", "device=cpu", "encoder=bottleneck", "d_z=4", "loss=reconstruction",
         "samples=40", "shots=1", "epochs=3", "passages_per_step=4", "checkpoint_every=2", "out=run"]  # fmt: skip


def steps(folder: Path) -> int:
    """Return the number of steps in the journal of a run."""
    path = folder / "run/metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
def test_the_other_process_ends_and_the_run_goes_on(tmp_path):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = start("train", *SMALL, folder=tmp_path / "whole", ranks=2)
    assert whole.wait() == [0, 0], whole.told()
    killed = start("train", *SMALL, folder=tmp_path / "killed", ranks=2)
    while steps(tmp_path / "killed") < 3:
        assert killed.running(), killed.told()
    killed.processes[1].kill()
    assert killed.wait(30) == [1, -signal.SIGKILL], killed.told()
    assert killed.told().count("another process of this command has ended") == 1
    assert "Traceback" not in killed.told()
    again = start("train", *SMALL, folder=tmp_path / "killed", ranks=2)
    assert again.wait() == [0, 0], again.told()
    assert "going on after step" in again.told()
    best = [read_json(tmp_path / name / "run/result.json")["history"] for name in ("whole", "killed")]
    assert best[0] == best[1]
