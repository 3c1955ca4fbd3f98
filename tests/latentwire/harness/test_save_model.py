"""Saving a model: after a failure, the earlier model is still there."""

from __future__ import annotations

import pytest
from safetensors import SafetensorError

from latentwire.harness.results import ResultWriteError
from latentwire.lm.model_folder import save_model


def test_a_full_disk_keeps_the_older_model(tiny, tmp_path, monkeypatch):
    target = tmp_path / "model"
    save_model(tiny.model, tiny.tokenizer, target)
    before = (target / "model.safetensors").read_bytes()

    def full(folder):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(tiny.model, "save_pretrained", full)
    with pytest.raises(ResultWriteError, match="No space left"):
        save_model(tiny.model, tiny.tokenizer, target)
    assert (target / "model.safetensors").read_bytes() == before
