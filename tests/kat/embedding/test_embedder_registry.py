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
    given = []

    @register_embedder("mine", uses_model=True)
    class Mine:
        def __init__(self, inputs, *, rate: float = 0.5, deep: bool = False, name: str = "x"):
            given.append((inputs.device.type, rate, deep, name))

        max_tokens, lengths, embed = 10, None, None

    spec = EmbedderSpec.of("mine", {"rate": 2, "deep": True}, inputs)
    spec.load()
    assert given == [("cpu", 2.0, True, "x")]
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


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("max_tokens", "ten", "max_tokens is ten: must be a whole number above 0; correct it"),
        ("max_tokens", 0, "max_tokens is 0: must be a whole number above 0"),
        ("lengths", lambda self, texts: [2.5, 1], r"lengths returned \[2.5, 1\]: must be a list of whole numbers"),
        ("lengths", lambda self, texts: [1], "lengths returned 1 numbers for 2 texts; correct it"),
        ("embed", lambda self, texts: [[1.0], [1.0]], r"embed returned a list, expected a tensor of shape \(2, D\)"),
        (
            "embed",
            lambda self, texts: torch.ones(1, 1),
            r"embed returned a tensor of shape \(1, 1\), expected .*\(2, D\)",
        ),
        ("embed", lambda self, texts: torch.ones(2), r"embed returned a tensor of shape \(2,\), expected"),
        (
            "embed",
            lambda self, texts: torch.ones(2, 4),
            r"embed returned a row of length 2, not 1; return kat.*unit_rows",
        ),
        ("embed", lambda self, texts: torch.full((2, 1), torch.nan), "embed returned a row of length nan, not 1"),
    ],
)
def test_an_embedder_has_to_keep_to_the_protocol(inputs, part, value, message):
    body = {"max_tokens": 10, "lengths": lambda self, texts: [1, 1], "embed": lambda self, texts: torch.ones(2, 1),
            "__init__": lambda self, inputs: None}  # fmt: skip
    register_embedder("odd")(type("Odd", (), {**body, part: value}))
    with pytest.raises(UserError, match=f"^embedder=odd: Odd.{message}"):
        loaded = EmbedderSpec.of("odd", {}, inputs).load()
        assert loaded.lengths(["a", "b"]) == [1, 1]
        loaded.embed(["a", "b"])
    del body[part]
    register_embedder("less")(type("Less", (), body))
    with pytest.raises(UserError, match=f"^embedder=less: Less has no {part}, which every embedder needs; add it"):
        EmbedderSpec.of("less", {}, inputs).load()


def test_rows_of_a_users_embedder_become_float32(inputs):
    """As the file of embeddings needs them."""
    rows = torch.eye(2, dtype=torch.float64, requires_grad=True)
    body = {"max_tokens": 10, "lengths": None, "embed": lambda self, texts: rows, "__init__": lambda self, inputs: None}
    register_embedder("exact")(type("Exact", (), body))
    found = EmbedderSpec.of("exact", {}, inputs).load().embed(["a", "b"])
    assert found.dtype == torch.float32 and not found.requires_grad and torch.equal(found, torch.eye(2))
