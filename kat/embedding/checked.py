"""An embedder whose results are checked, also one of a user's own. Main entry: `CheckedEmbedder`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kat.embedding.pooling import Embedder
from latentwire.harness.errors import UserError

TOLERANCE = 1e-3  # largest difference of a unit row's length from 1, as in `kat.embedding.store`


class CheckedEmbedder:
    """An embedder that raises `UserError` if the embedder in it does not keep to the protocol `Embedder`.

    Args:
        name: Name under which it is registered.
        embedder: The embedder.

    Raises:
        UserError: The embedder lacks an attribute of the protocol, or its max_tokens is not a whole number above 0.
    """

    def __init__(self, name: str, embedder: Embedder) -> None:
        self.embedder = embedder
        self._place = f"embedder={name}: {type(embedder).__qualname__}"
        if lacking := [part for part in ("max_tokens", "lengths", "embed") if not hasattr(embedder, part)]:
            raise UserError(f"{self._place} has no {lacking[0]}, which every embedder needs; add it")
        self.max_tokens = embedder.max_tokens
        if not isinstance(self.max_tokens, int) or self.max_tokens < 1:
            raise UserError(
                f"{self._place}.max_tokens is {self.max_tokens}: must be a whole number above 0; correct it"
            )

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text.

        Raises:
            UserError: The embedder does not return one whole number for each text.
        """
        found = self.embedder.lengths(texts)
        if not isinstance(found, list) or not all(isinstance(length, int) for length in found):
            raise UserError(
                f"{self._place}.lengths returned {str(found)[:80]}: must be a list of whole numbers; correct it"
            )
        if len(found) != len(texts):
            raise UserError(f"{self._place}.lengths returned {len(found)} numbers for {len(texts)} texts; correct it")
        return found

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return one unit row for each text of one batch: (B, D) float32 on the CPU.

        Raises:
            UserError: The embedder returns something else than a matrix with B rows, or rows of another length than 1.
        """
        found = self.embedder.embed(texts)
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(texts) or found.shape[1] == 0:
            shape = (
                f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            )
            raise UserError(
                f"{self._place}.embed returned {shape}, expected a tensor of shape ({len(texts)}, D), one row for each "
                "text; correct it"
            )
        rows = found.detach().float().cpu()
        norms = rows.norm(dim=1)
        wrong = (~((norms - 1).abs() < TOLERANCE)).nonzero().flatten()  # includes NaN
        if len(wrong):
            raise UserError(
                f"{self._place}.embed returned a row of length {float(norms[wrong[0]]):.4g}, not 1; return "
                "kat.embedding.pooling.unit_rows(vectors)"
            )
        return rows
