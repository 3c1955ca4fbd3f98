"""The command sweep=latent_norm on a tiny model: its files, what it does not repeat, and bad settings."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from latentwire.evaluation import norm_measurements
from tests.helpers.files import read_rows

pytestmark = pytest.mark.usefixtures("one_thread")

GRIDS = (
    "{embed_transform:rms_matching,target_scale:[1.0,10.0],seed:[0,1]},"
    "{embed_transform:baseline,adapter_scale:free,seed:[0,1]}"
)
SWEEP = [
    "-m", "sweep=latent_norm", f"sweep.grids=[{GRIDS}]", "model=tiny_random", "device=cpu", "dtype=float32",
    "adapter_hidden=8", "encoder=bottleneck", "d_z=8", "loss=reconstruction", "samples=12", "generated=0", "shots=1",
    "epochs=1", "max_new_tokens=2", "norm.samples=6", "norm.factors=[0.1,1,10]",
]  # fmt: skip


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.json") if path.parent.name != "replaced"}


@pytest.mark.slow
def test_the_norm_sweep_measures_compares_and_resumes(trains, cli, tmp_path, monkeypatch):
    class KilledError(BaseException):
        """An exception that no handler catches, like SIGKILL."""

    real, seen = norm_measurements.evaluate, []

    def evaluate(*arguments):
        if len(seen) == 7:
            raise KilledError
        seen.append(arguments[4])
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(norm_measurements, "evaluate", evaluate)
        with pytest.raises(KilledError):
            trains(*SWEEP)
    out = tmp_path / "outputs/latent_norm"
    before = times(out)
    assert len(list(out.glob("*/result.json"))) == 6 and not (out / "latent_norm.json").exists()
    assert {f"{name}.json" for name in seen} <= before.keys()

    status, text, err = trains(*SWEEP)
    assert status == 0, err
    after = times(out)
    assert {name for name in before if after[name] != before[name]} == set()  # nothing is trained or measured twice
    found = json.loads((out / "latent_norm.json").read_text())
    assert [(curve["kind"], curve["seeds"]) for curve in found["curves"]] == [
        ("tokens", 1), ("rms_scale1.0", 2), ("rms_scale10.0", 2), ("free", 2)
    ]  # fmt: skip
    lengths = {curve["kind"]: curve["length"] for curve in found["curves"]}
    assert lengths["rms_scale10.0"] == pytest.approx(10 * lengths["rms_scale1.0"], rel=1e-4)
    assert found["verdict"]["sentence"] in text
    assert (out / "latent_norm.html").is_file() and (out / "latent_norm.svg").is_file()

    # run.py gives the same answers with the same encoder and factor.
    name = Path(found["runs"][-1]["encoder"]).parent
    assert cli("model=tiny_random", "device=cpu", "dtype=float32", "shots=1", "max_new_tokens=2", "samples=6",
               "embed_source=latent", f"checkpoint={name}", "factor=10", "out=asked")[0] == 0  # fmt: skip
    asked = read_rows(tmp_path / "asked/baseline@latent.predictions.jsonl")
    own = read_rows(out / f"measurements/{name.name}_x10.predictions.jsonl")
    assert [row["prediction"] for row in asked] == [row["prediction"] for row in own]
    with (out / "residual_stream.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["layer"] == "0" and row["kind"] == "tokens"]
    scaled = [float(row["rms"]) for row in rows]
    assert scaled == pytest.approx([scaled[1] / 10, scaled[1], scaled[1] * 10], rel=1e-4)

    # `only` leaves out kinds and repeats nothing; `force` measures again.
    assert trains(*SWEEP, "only=*rms*")[0] == 0
    part = json.loads((out / "latent_norm.json").read_text())
    assert [curve["kind"] for curve in part["curves"]] == ["tokens", "rms_scale1.0", "rms_scale10.0"]
    assert times(out / "measurements") == {
        name: time for name, time in after.items() if "_x" in name or "empty" in name
    }


@pytest.mark.slow
def test_a_kind_that_diverges_is_left_out_and_reported(trains, tmp_path):
    grids = "{seed:[0,1],optimizer.learning_rate:[1e-3,1e30]}"
    status, _, err = trains(*[f"sweep.grids=[{grids}]" if "grids" in part else part for part in SWEEP])
    assert status == 1 and "2 of 4 runs failed" in err and "Traceback" not in err
    found = json.loads((tmp_path / "outputs/latent_norm/latent_norm.json").read_text())
    assert len(found["curves"]) == 2


@pytest.mark.parametrize("factors", ["[1,0.1]", "[0,1]", "[0.1,10]", "[-1,1]", "[1,nan]", "[1,1e11]", "[]"])
def test_factors_are_checked_before_any_training(trains, tmp_path, factors):
    status, _, err = trains(*SWEEP, f"norm.factors={factors}")
    assert status == 1 and "must be ascending numbers between 1e-10 and 1e10, with 1 among them" in err
    assert not (tmp_path / "outputs").exists()


def test_a_single_run_is_refused(trains):
    status, _, err = trains("task=latent_norm", "model=tiny_random")
    assert status == 1 and "begin with python train.py -m sweep=latent_norm" in err
