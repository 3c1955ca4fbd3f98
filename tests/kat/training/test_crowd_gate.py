"""Weights that feed crowds train only with force_weights=true, which the identity of the run records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from kat.training.state import arm_identity
from latentwire.harness.errors import UserError

GATES = {"local_share": 1.0, "centre_correlation": 0.1, "crowd_ratio": 0.2, "crowd_ratio_mean": 0.1, "stability": 0.9,
         "agreement": None, "weights_apart": None}  # fmt: skip


def config(folder: Path, sampler: str, crowd: float | None, **changes: object) -> DictConfig:
    """Write weights with a density.json, and return the part of a config that decides the draws."""
    (folder / "weights.jsonl").write_text('{"id": "a", "density": 1.0, "weight": 1.0, "group": 0}\n')
    record = {"format": 2, "settings": {}, "seed": 0, "embeddings_sha256": "", "weights_sha256": "", "versions": {},
              "git_commit": None, "gates": GATES | {"crowd_ratio": crowd}}  # fmt: skip
    (folder / "density.json").write_text(json.dumps(record))
    settings = {"folder": str(folder), "weights_file": "weights.jsonl", "force_weights": False}
    return OmegaConf.create({**settings, "sampler": {"name": sampler}, **changes})


@pytest.mark.parametrize("sampler", ["density", "reversed", "shuffled"])
def test_weights_that_feed_crowds_are_refused(tmp_path, sampler):
    with pytest.raises(UserError, match=r"weights\.jsonl: a crowd of 20 .*1\.30 times.*force_weights=true"):
        arm_identity(config(tmp_path, sampler, 1.3))
    assert arm_identity(config(tmp_path, sampler, 0.99))["force_weights"] is False
    assert arm_identity(config(tmp_path, sampler, None))["force_weights"] is False  # too few prompts for a crowd


def test_forced_weights_are_recorded(tmp_path, capsys):
    assert arm_identity(config(tmp_path, "density", 1.3, force_weights=True))["force_weights"] is True
    assert "force_weights=true: " in "".join(capsys.readouterr())


@pytest.mark.parametrize("sampler", ["uniform", "deduplicated"])
def test_arms_without_density_need_no_gate(tmp_path, sampler):
    identity = arm_identity(config(tmp_path, sampler, 1.3))
    assert "force_weights" not in identity
    assert (identity["weights_sha256"] is None) == (sampler == "uniform")


def test_weights_of_an_earlier_release_have_no_gates(tmp_path):
    cfg = config(tmp_path, "density", 0.5)
    record = json.loads((tmp_path / "density.json").read_text())
    del record["gates"]
    (tmp_path / "density.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"density\.json lacks gates: run task=density again"):
        arm_identity(cfg)
    (tmp_path / "density.json").unlink()
    assert arm_identity(cfg)["sampler"] == "density"  # weights of the user's own are used unchecked
