"""Embedding many texts piece by piece: finished pieces stay on disk, several processes share them out.

What is in a piece depends on the lengths of the texts and the token budget alone, so that a run that was killed goes
on, with another number of processes too, and ends with the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from kat.embedding.pooling import Embedder, plan
from latentwire.harness.results import open_atomically, writing

MOST_BATCHES = 16  # batches in a piece; fewer where there are so few that processes would be left without


class Shards:
    """The pieces of one piece of work in a folder of their own.

    Args:
        folder: Where finished pieces lie; must be another for other texts, another embedder or another budget.
        lengths: Number of tokens of each text.
        batch_tokens: Positions (rows x longest) embedded at a time.
    """

    def __init__(self, folder: Path, lengths: Sequence[int], batch_tokens: int) -> None:
        self.folder, self.total = folder, len(lengths)
        batches = plan(lengths, batch_tokens)
        size = max(1, min(MOST_BATCHES, len(batches) // 64))
        self.pieces = [batches[start : start + size] for start in range(0, len(batches), size)]

    def path(self, piece: int) -> Path:
        """Return where a piece lies."""
        return self.folder / f"{piece:06d}.safetensors"

    def texts_of(self, pieces: Sequence[int]) -> int:
        """Return how many texts are in some pieces."""
        return sum(len(batch) for piece in pieces for batch in self.pieces[piece])

    def missing(self) -> list[int]:
        """Return the pieces that are not finished."""
        return [piece for piece in range(len(self.pieces)) if self._read(piece) is None]

    def work(
        self, pieces: Sequence[int], embedder: Embedder, texts: Sequence[str], advance: Callable[[int], None]
    ) -> None:
        """Embed some pieces and write each when it is whole; `advance` is told the number of texts of each batch."""
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
        """Return all rows in the order of the texts: (N, D)."""
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
        """Return the rows of a finished piece and their vectors; None if it is not there, or not what it should be."""
        try:
            content = safetensors.torch.load_file(self.path(piece))
        except (FileNotFoundError, SafetensorError):
            return None
        expected = [row for batch in self.pieces[piece] for row in batch]
        if content.keys() != {"rows", "emb"} or content["rows"].tolist() != expected:
            return None
        return (content["rows"], content["emb"]) if len(content["emb"]) == len(expected) else None
