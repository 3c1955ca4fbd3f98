"""Rows that are like the embeddings of a language model: a common direction and a falling spectrum."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from tests.helpers.random import draws


def lifelike(seed: int = 0, n: int = 800, width: int = 96, topics: int = 40) -> torch.Tensor:
    """Return unit rows (N, D) of topics with sizes by 1/rank; the spectrum falls as 1/i, around a common direction."""
    generator = draws(seed)
    spread = torch.arange(1, width + 1) ** -0.5
    centres = torch.randn(topics, width, generator=generator)
    topic = torch.multinomial(1 / torch.arange(1, topics + 1.0), n, replacement=True, generator=generator)
    x = (0.7 * centres[topic] + torch.randn(n, width, generator=generator)) * spread
    return normalize(x + torch.eye(width)[0], dim=1)
