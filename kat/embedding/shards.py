"""Embedding of many texts in pieces that several processes share. Main entry: `Shards`.

Finished pieces stay on disk. A piece depends only on the lengths of the texts and the token budget. A killed run
therefore resumes with the same rows, also with another number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from kat.embedding.pooling import Embedder, plan_embedding_batches
from latentwire.harness.results import open_atomically, writing

MOST_BATCHES = 16  # largest number of batches in a piece; few batches give smaller pieces, enough for all processes


class Shards:
    """The pieces of one embedding run, in their own folder.

    Args:
        folder: The folder of the finished pieces. Other texts, embedders or budgets need another folder.
        lengths: The number of tokens of each text.
        batch_tokens: The largest number of positions (rows x longest text) in a batch.
    """

    def __init__(self, folder: Path, lengths: Sequence[int], batch_tokens: int) -> None:
        self.folder, self.total = folder, len(lengths)
        batches = plan_embedding_batches(lengths, batch_tokens)
        size = max(1, min(MOST_BATCHES, len(batches) // 64))
        self.pieces = [batches[start : start + size] for start in range(0, len(batches), size)]

    def path(self, piece: int) -> Path:
        """Return the file of a piece."""
        return self.folder / f"{piece:06d}.safetensors"

    def texts_of(self, pieces: Sequence[int]) -> int:
        """Return the number of texts in the given pieces."""
        return sum(len(batch) for piece in pieces for batch in self.pieces[piece])

    def missing(self) -> list[int]:
        """Return the numbers of the pieces that are not finished."""
        return [piece for piece in range(len(self.pieces)) if self._read(piece) is None]

    def work(
        self, pieces: Sequence[int], embedder: Embedder, texts: Sequence[str], advance: Callable[[int], None]
    ) -> None:
        """Embed the given pieces, and write each piece when it is complete.

        Args:
            pieces: The numbers of the pieces.
            embedder: The embedder.
            texts: All texts.
            advance: A function that is called after each batch with its number of texts.
        """
        for piece in pieces:
            vectors = []
            for batch in self.pieces[piece]:
                vectors.append(embedder.embed([texts[row] for row in batch]))
                advance(len(batch))
            rows = torch.tensor([row for batch in self.pieces[piece] for row in batch])
            content = safetensors.torch.save({"rows": rows, "emb": torch.cat(vectors)})
            with open_atomically(self.path(piece)) as file, writing(self.path(piece)):
                file.write(content)

    def assemble(self) -> Tensor:
        """Return all embeddings in the order of the texts, (N, D); all pieces must be finished."""
        emb: Tensor | None = None
        for piece in range(len(self.pieces)):
            content = self._read(piece)
            assert content is not None, f"piece {piece} is not finished"
            rows, vectors = content
            if emb is None:
                emb = torch.full((self.total, vectors.shape[1]), torch.nan)
            emb[rows] = vectors
        assert emb is not None and not bool(emb.isnan().any())
        return emb

    def _read(self, piece: int) -> tuple[Tensor, Tensor] | None:
        """Return the row numbers and vectors of a finished piece; None if its file is missing or damaged."""
        try:
            content = safetensors.torch.load_file(self.path(piece))
        except (FileNotFoundError, SafetensorError):
            return None
        expected = [row for batch in self.pieces[piece] for row in batch]
        if content.keys() != {"rows", "emb"} or content["rows"].tolist() != expected:
            return None
        return (content["rows"], content["emb"]) if len(content["emb"]) == len(expected) else None
