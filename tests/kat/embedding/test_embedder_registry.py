"""Embedders by name: their settings, and the identities by which embeddings are found again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kat.embedding.registry import EMBEDDERS, EmbedderInputs, EmbedderSpec, register_embedder
from kat.embedding.store import record_of, save_embeddings
from latentwire.harness.assets import file_sha256
from latentwire.harness.errors import UserError
from tests.helpers.models import model_spec

WHEEL = {"package": "mini==1.0", "sha256": "ab" * 32, "member": "mini/"}


@pytest.fixture
def inputs() -> EmbedderInputs:
    return EmbedderInputs(model_spec("tiny_random"), torch.device("cpu"), torch.float32)


@pytest.fixture(autouse=True)
def own_embedders(monkeypatch) -> None:
    """Forget what a test registers."""
    monkeypatch.setattr(EMBEDDERS, "things", dict(EMBEDDERS.items()))


def test_identities_are_as_in_earlier_versions(inputs):
    """Embeddings of existing folders are found by these."""
    common = {"text": "plain-1", "dtype": "float32"}
    model = model_spec("tiny_random").identity()
    for name, settings, expected in (
        ("hidden", {}, {"embedder": "hidden", "model": model}),
        ("logits", {"full": False}, {"embedder": "logits", "model": model}),
        ("logits", {"full": True}, {"embedder": "logits", "model": model, "full": True}),
        ("sentence", {**WHEEL, "path": ""}, {"embedder": "sentence", "package": "mini==1.0", "sha256": "ab" * 32}),
        ("sentence", {**WHEEL, "path": "org/name"}, {"embedder": "sentence", "repo": "org/name"}),
    ):
        spec = EmbedderSpec.of(name, settings, inputs)
        assert spec.identity() == {**common, **expected}
        assert spec.model_name == ("tiny_random" if "model" in expected else None)


def test_a_sentence_encoder_in_a_folder_is_its_files(inputs, tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "weights").write_text("1")
    identity = EmbedderSpec.of("sentence", {**WHEEL, "path": str(tmp_path)}, inputs).identity()
    assert identity["files"] == {"inner/weights": file_sha256(tmp_path / "inner" / "weights")}
    assert "package" not in identity


def test_settings_are_the_keyword_arguments(inputs):
    @register_embedder("mine", uses_model=True)
    class Mine:
        def __init__(self, inputs, *, rate: float = 0.5, deep: bool = False, name: str = "x"):
            self.max_tokens, self.given = 10, (inputs.device.type, rate, deep, name)

    spec = EmbedderSpec.of("mine", {"rate": 2, "deep": True}, inputs)
    assert spec.load().given == ("cpu", 2.0, True, "x")
    identity = spec.identity()
    assert identity["settings"] == {"rate": 2.0, "deep": True, "name": "x"}
    assert identity["model"] == model_spec("tiny_random").identity()
    assert identity["source"] == EMBEDDERS.source_digest("mine") is not None
    assert spec.identity() == EmbedderSpec.of("mine", {"rate": 2.0, "deep": True}, inputs).identity()
    for settings, message in (
        ({"rate": "high"}, "embedder.rate=high: expected a number"),
        ({"rate": True}, "embedder.rate=True: expected a number"),
        ({"deep": 1}, "embedder.deep=1: expected true or false"),
        ({"name": 3}, "embedder.name=3: expected a text"),
        ({"width": 3}, r"embedder.width=3: embedder=mine has no such setting \(its settings: rate, deep, name\)"),
    ):
        with pytest.raises(UserError, match=message):
            EmbedderSpec.of("mine", settings, inputs)
    with pytest.raises(UserError, match=r"embedder=other: unknown; use one of .*hidden"):
        EmbedderSpec.of("other", {}, inputs)


def test_a_part_of_the_settings_may_be_the_identity(inputs):
    @register_embedder("quick", identity=lambda size, threads: {"size": size})
    def quick(inputs, *, size: int = 3, threads: int = 1):
        raise AssertionError("not loaded")

    one, two = (EmbedderSpec.of("quick", {"threads": threads}, inputs).identity() for threads in (1, 2))
    assert one == two and one["size"] == 3 and "settings" not in one


def test_stored_embeddings_embed_no_text(inputs, tmp_path):
    save_embeddings(tmp_path / "e.pt", ["a"], torch.eye(1))
    spec = EmbedderSpec.of("file", {"path": str(tmp_path / "e.pt")}, inputs)
    assert spec.is_stored and not EmbedderSpec.of("hidden", {}, inputs).is_stored
    assert spec.identity() == {"embedder": "file", "sha256": file_sha256(tmp_path / "e.pt")}
    with pytest.raises(UserError, match="embedder=file: a file cannot embed a poem; give an embedder of texts"):
        spec.require_texts("a poem")
    EmbedderSpec.of("hidden", {}, inputs).require_texts("a poem")


def test_a_record_of_another_kind_is_refused(tmp_path):
    assert record_of(tmp_path / "e.pt") is None
    Path(tmp_path / "e.json").write_text('{"points": []}')
    with pytest.raises(UserError, match=r"e\.json lacks .*key.*: make the embeddings again .* or move e\.json away"):
        record_of(tmp_path / "e.pt")
