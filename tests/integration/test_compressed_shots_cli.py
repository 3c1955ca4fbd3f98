"""Compressed shots from the command line: training, resuming, and the report on the encoder."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.files import read_json, read_rows

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow, pytest.mark.float_path]

TINY = ["model=tiny_random", "device=cpu", "dtype=float32", "shots=1", "max_new_tokens=2"]
TRAIN = ["task=latent", *TINY, "encoder=lm_layers", "layers=1", "ratio=2", "groups=equal", "adapter_hidden=16",
         "loss=answers", "samples=12", "epochs=2", "held_out=0.02", "passages_per_step=3"]  # fmt: skip
REPORT = ["task=latent_report", *TINY, "samples=4", "out=report"]


def test_an_encoder_keeps_its_shots_from_training_to_report(trains, cli, tmp_path):
    for name, choices in {
        "straight": ["compressed_shots=true"],
        "stopped": ["compressed_shots=true", "stop_epoch=1"],
        "plain": [],
    }.items():
        status, _, err = trains(*TRAIN, *choices, f"out={name}")
        assert status == 0, err
    status, _, err = trains(*TRAIN, "compressed_shots=true", "out=stopped")
    assert status == 0, err
    assert "going on after step" in err
    rows = {name: read_rows(tmp_path / name / "metrics.jsonl") for name in ("straight", "stopped", "plain")}
    assert rows["straight"] == rows["stopped"] != rows["plain"]
    weights = {name: load_file(tmp_path / name / "encoder/model.safetensors") for name in rows}
    for name, own in weights["straight"].items():
        assert torch.equal(own, weights["stopped"][name])
    abouts = {name: read_json(tmp_path / name / "encoder/config.json") for name in rows}
    assert abouts["straight"]["compressed_shots"] is abouts["straight"]["identity"]["compressed_shots"] is True
    assert "compressed_shots" not in abouts["plain"] and "compressed_shots" not in abouts["plain"]["identity"]

    status, out, err = cli(*REPORT, "checkpoint=straight")
    assert status == 0, err
    assert "the shots' passages are latents for latents, and text for all others" in out
    shots = {row: read_json(tmp_path / f"report/{row}.json")["timing"]["shots_positions"] for row in
             ("text", "latent", "cut", "chosen", "averaged", "empty")}  # fmt: skip
    assert len({positions for row, positions in shots.items() if row != "latent"}) == 1
    assert shots["latent"] < shots["text"]
    status, out, err = cli(*REPORT, "checkpoint=plain", "out=other")
    assert status == 0, err
    assert "the shots' passages" not in out
