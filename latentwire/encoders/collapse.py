"""Detection of collapse: equal latents for different passages. Main entry: `mean_pairwise_cosine()`."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity


def mean_pairwise_cosine(latents: list[Tensor]) -> float:
    """Return the mean cosine between latents of different passages at the same position; near 1 they have collapsed.

    Args:
        latents: Latents of different passages, (L_i, D) each.

    Returns:
        The mean over pairs of neighbours in the list; 0 for fewer than two passages.
    """
    pairs = itertools.pairwise(latents)
    values = [cosine_similarity(a[: len(b)], b[: len(a)], dim=-1).mean() for a, b in pairs if len(a) and len(b)]
    return float(torch.stack(values).mean()) if values else 0.0
