"""Shots whose passages are vectors instead of tokens. Main entry: `shots_embeds()`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from latentwire.data.prompts import ShotPiece
from latentwire.lm.models import LanguageModel


def shots_embeds(lm: LanguageModel, pieces: Sequence[ShotPiece], passages: Iterable[Tensor]) -> Tensor:
    """Return the embeddings of the shots with their passages replaced; questions and answers stay tokens.

    Args:
        lm: The LM, which embeds the tokens.
        pieces: The tokens of the shots.
        passages: What replaces each passage, (L_i, D), in the order of the pieces.

    Returns:
        (P, D) in the LM's dtype.

    Raises:
        ValueError: There are more or fewer replacements than passages.
    """
    own = [place for place, piece in enumerate(pieces) if piece.passage is not None]
    replaced = {place: rows.to(lm.device, lm.dtype) for place, rows in zip(own, passages, strict=True)}
    parts = [replaced[place] if place in replaced else lm.embed(piece.token_ids) for place, piece in enumerate(pieces)]
    return torch.cat(parts)
