"""Random generators from a seed and names. Main entry: `generator_for()`."""

from __future__ import annotations

import hashlib

import torch


def generator_for(seed: int, *names: object) -> torch.Generator:
    """Return a CPU generator that depends only on the seed and the names.

    If the names are the purpose and the example, random numbers do not depend on order, batch or process.
    """
    text = "\x1f".join(str(part) for part in (seed, *names))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") % 2**63)
