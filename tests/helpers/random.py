"""Random numbers of the tests."""

from __future__ import annotations

import torch


def draws(seed: int) -> torch.Generator:
    """Return a generator with this seed."""
    return torch.Generator().manual_seed(seed)
