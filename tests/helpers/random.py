"""Random numbers of the tests, all shifted by one environment variable.

`TEST_SEED=3 python -m pytest` gives every test other random data: a statistical test must pass with any of them.
"""

from __future__ import annotations

import os

import numpy as np
import torch

SHIFT = 1000 * int(os.environ.get("TEST_SEED", "0"))


def shifted(seed: int = 0) -> int:
    """Return a seed, moved by TEST_SEED."""
    return seed + SHIFT


def draws(seed: int) -> torch.Generator:
    """Return a PyTorch generator with a shifted seed."""
    return torch.Generator().manual_seed(shifted(seed))


def numbers(seed: int = 0) -> np.random.Generator:
    """Return a NumPy generator with a shifted seed."""
    return np.random.default_rng(shifted(seed))
