"""Randomness that depends on a seed and on names alone."""

from __future__ import annotations

import hashlib

import torch


def generator_for(seed: int, *names: object) -> torch.Generator:
    """Return a CPU generator that depends on the seed and the names alone.

    Naming the purpose and the example makes randomness independent of order, batch and process.
    """
    text = "\x1f".join(str(part) for part in (seed, *names))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") % 2**63)
