"""The control with a learned style in task=latent_report, from its training to its row, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from latentwire.encoders.checkpoint import save_latents
from latentwire.encoders.pipeline import Latents, LatentSpec
from latentwire.encoders.registry import encoder_lm_config
from latentwire.lm.vocabulary import Vocabulary
from tests.helpers.files import read_json, read_rows
from tests.helpers.models import model_spec

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

LAYERS = {"layers": 1, "groups": "equal", "pool": "mean"}
REPORT = ["task=latent_report", "checkpoint=run", "model=tiny_random", "samples=8", "shots=1", "max_new_tokens=2",
          "device=cpu", "dtype=float32", "out=report"]  # fmt: skip
TRAIN = ["task=latent", "encoder=cut_text", "ratio=3", "style_tokens=2", "loss=answers", "model=tiny_random",
         "device=cpu", "dtype=float32", "samples=12", "shots=1", "epochs=1", "held_out=0.02", "max_new_tokens=2",
         "out=style"]  # fmt: skip


def save(
    tiny, vocabulary: Vocabulary, folder: Path, encoder: str, transform: str = "baseline", **dials: object
) -> None:
    """Write a folder of an untrained encoder for the tiny model."""
    config = encoder_lm_config(encoder, tiny.model)
    transform_dials = {"target_scale": 1.0} if transform == "rms_matching" else {}
    identity = model_spec("tiny_random").identity()
    spec = LatentSpec(encoder, dict(dials), 8, transform, transform_dials, identity, "tiny_random", config)
    latents = Latents(spec, vocabulary)
    latents.encoder.start_from(tiny.model)
    save_latents(latents, folder, {"trained_on": ["a", "b"]})


@pytest.mark.float_path
def test_the_style_is_trained_and_gets_a_row(trains, cli, tiny, vocabulary, tmp_path):
    save(tiny, vocabulary, tmp_path / "run", "lm_layers", **LAYERS, ratio=3)
    status, out, err = cli(*REPORT)
    assert status == 0, err
    alone = read_json(tmp_path / "report/report.json")
    assert [row["source"] for row in alone["rows"]] == ["text", "latent", "cut", "chosen", "averaged", "empty"]
    command = (
        "python train.py task=latent encoder=cut_text ratio=3 loss=answers model=tiny_random, then add style=FOLDER"
    )
    assert alone["notes"] == [
        f"no row of the cut text with a learned style: train it on the encoder's data with {command}"
    ]
    assert out.endswith(f"note: {alone['notes'][0]}\n")

    status, _, err = trains(*TRAIN)
    assert status == 0, err
    assert " 128 weights" in err  # 2 vectors of width 64, and no adapter
    assert list(load_file(tmp_path / "style/encoder/model.safetensors")) == ["encoder.style"]
    assert {row["kind"] for row in read_rows(tmp_path / "style/metrics.jsonl")} == {"answers"}
    assert all(row["grad_norm"] > 0 for row in read_rows(tmp_path / "style/metrics.jsonl"))

    kept = (tmp_path / "report/cut.json").stat().st_mtime_ns
    status, out, err = cli(*REPORT, "style=style")
    assert status == 0, err
    report = read_json(tmp_path / "report/report.json")
    rows = {row["source"]: row for row in report["rows"]}
    assert list(rows) == ["text", "latent", "cut", "style", "chosen", "averaged", "empty"]
    equal = {rows[name]["positions"] for name in ("latent", "cut", "style", "chosen", "averaged")}
    assert len(equal) == 1 and equal.pop() > rows["text"]["positions"] / 3  # 3 does not divide all lengths
    assert all(rows[name]["f1_against"] and rows[name]["nll_against"] for name in rows if name != "latent")
    assert rows["style"]["nll"] != rows["cut"]["nll"]
    assert (tmp_path / "report/cut.json").stat().st_mtime_ns == kept
    assert report["notes"] == ["style=style was not trained on 2 of the encoder's 2 passages"]
    kinds = report["kinds"]
    assert sum(row["num_samples"] for row in kinds) == 8
    for name, row in rows.items():
        assert row["f1"] == pytest.approx(sum(kind["num_samples"] * kind["scores"][name]["f1"] for kind in kinds) / 8)
    assert "with a digit" in out and "with style" in out


@pytest.mark.parametrize(
    ("encoder", "transform", "dials", "message"),
    [
        ("cut_text", "rms_matching", {"ratio": 3, "style_tokens": 1}, "style=x: was trained with "
                                                                      "embed_transform=rms_matching, which changes"),
        ("bottleneck", "baseline", {"d_z": 4}, "style=x: is encoder=bottleneck; give the folder of a train.py"),
    ],
)  # fmt: skip
def test_an_unequal_style_is_refused(cli, tiny, vocabulary, tmp_path, encoder, transform, dials, message):
    save(tiny, vocabulary, tmp_path / "run", "lm_layers", **LAYERS, ratio=3)
    save(tiny, vocabulary, tmp_path / "x", encoder, transform, **dials)
    status, _, err = cli(*REPORT, "style=x")
    assert status == 1
    assert f"error: {message}" in err
    assert not list((tmp_path / "report").glob("*.json*"))  # nothing was evaluated


@pytest.mark.float_path
def test_another_style_is_evaluated_anew(cli, tiny, vocabulary, tmp_path):
    """A style that was trained with compressed shots is noted, and its row has them."""
    save(tiny, vocabulary, tmp_path / "run", "lm_layers", **LAYERS, ratio=3)
    found = {}
    for style in ("x", "y"):
        save(tiny, vocabulary, tmp_path / style, "cut_text", ratio=3, style_tokens=2)
        if style == "y":
            about = read_json(tmp_path / "y/config.json")
            (tmp_path / "y/config.json").write_text(json.dumps({**about, "compressed_shots": True}))
        status, _, err = cli(*REPORT, f"style={style}")
        assert status == 0, err
        rows = {row["source"]: row["nll"] for row in read_json(tmp_path / "report/report.json")["rows"]}
        shots = read_json(tmp_path / "report/style.json")["timing"]["shots_positions"]
        found[style] = rows, shots, read_json(tmp_path / "report/report.json")["notes"]
    (first, longer, _), (second, shorter, notes) = found.values()
    assert {name for name in first if first[name] != second[name]} == {"style"}
    assert shorter < longer
    assert notes == ["the shots' passages are latents for style=y, and text for all others"]


def test_a_style_must_exist_and_be_for_this_model(cli, tiny, vocabulary, tmp_path):
    save(tiny, vocabulary, tmp_path / "run", "lm_layers", **LAYERS, ratio=3)
    status, _, err = cli(*REPORT, "style=nowhere")
    assert status == 1 and "error: style=nowhere: no such folder; give the folder of a finished train.py" in err
    save(tiny, vocabulary, tmp_path / "x", "cut_text", ratio=3, style_tokens=1)
    about = read_json(tmp_path / "x/config.json")
    (tmp_path / "x/config.json").write_text(json.dumps({**about, "lm": {"repo": "other/model"}, "lm_name": "other"}))
    status, _, err = cli(*REPORT, "style=x")
    assert status == 1 and "error: style=x: was trained for the model other, not for this one" in err


def test_an_encoder_without_a_ratio_takes_no_style(cli, tiny, vocabulary, tmp_path):
    save(tiny, vocabulary, tmp_path / "x", "cut_text", ratio=3, style_tokens=1)
    for encoder, dials in (("bottleneck", {"d_z": 4}), ("lm_layers", {**LAYERS, "ratio": 1})):
        save(tiny, vocabulary, tmp_path / "run", encoder, **dials)
        status, _, err = cli(*REPORT, "style=x")
        assert status == 1
        assert (
            f"error: style=x: has ceil(T / ratio) positions, and encoder={encoder} has others; leave style out" in err
        )


def test_a_report_without_controls_of_a_ratio_asks_for_none(cli, tiny, vocabulary, tmp_path):
    torch.manual_seed(0)
    save(tiny, vocabulary, tmp_path / "run", "byte", latent_len=3, byte_width=8, byte_layers=1)
    status, out, err = cli(*REPORT)
    assert status == 0, err
    report = read_json(tmp_path / "report/report.json")
    assert report["notes"] == [] and "note:" not in out
    rows = {row["source"]: row for row in report["rows"]}
    assert list(rows) == ["text", "latent", "cut", "chosen", "averaged", "empty"]
    assert {rows[name]["positions"] for name in ("latent", "cut", "chosen", "averaged")} == {3}


def test_an_encoder_is_read_at_another_ratio(cli, tiny, vocabulary, tmp_path):
    save(tiny, vocabulary, tmp_path / "run", "lm_layers", **LAYERS, ratio=3)
    save(tiny, vocabulary, tmp_path / "x", "cut_text", ratio=3, style_tokens=1)
    status, _, err = cli(*REPORT, "ratio=6", "style=x")
    assert status == 0, err
    report = read_json(tmp_path / "report/report.json")
    rows = {row["source"]: row["positions"] for row in report["rows"]}
    assert len({rows[name] for name in ("latent", "cut", "style", "chosen", "averaged")}) == 1
    assert rows["text"] / 6 <= rows["latent"] < rows["text"] / 6 + 1
    assert report["notes"] == ["style=x was trained with ratio=3 and is read with ratio=6"]  # on the same passages


@pytest.mark.parametrize(
    ("encoder", "dials", "ratio", "message"),
    [
        ("lm_layers", {**LAYERS, "ratio": 3}, "x", "ratio=x: must be a whole number of tokens for each position"),
        ("lm_layers", {**LAYERS, "ratio": 3}, "0", "ratio=0: must be a whole number of tokens for each position"),
        ("bottleneck", {"d_z": 4}, "2", "ratio=2: Bottleneck has no ratio that can change; leave it out"),
    ],
)
def test_a_ratio_that_cannot_be_read_is_refused(cli, tiny, vocabulary, tmp_path, encoder, dials, ratio, message):
    save(tiny, vocabulary, tmp_path / "run", encoder, **dials)
    status, _, err = cli(*REPORT, f"ratio={ratio}")
    assert status == 1
    assert f"error: {message}" in err
