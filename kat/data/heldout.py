"""The prompts that are held out of training, the same for every sampler and seed. Main entry: `held_out()`."""

from __future__ import annotations

import hashlib

from latentwire.harness.errors import UserError

LEDGER = "ledger.jsonl"  # a run's file with the number of draws of each training prompt

SALT = b"held-out prompts"  # another salt would hold out other prompts


def held_out(prompt_id: str, share: float) -> bool:
    """Return whether a prompt is held out of training.

    Only the prompt's id decides, so runs with any sampler and seed hold out the same prompts. A larger share holds out
    every prompt of a smaller share, and more. The share is approximate: about `share` of many prompts are held out.

    Args:
        prompt_id: The id of the prompt, as in prompts_all.jsonl.
        share: The share of the prompts to hold out, from 0 (none) to below 1.

    Raises:
        UserError: The share is out of range.
    """
    require_share(share)
    digest = hashlib.blake2b(prompt_id.encode(), digest_size=8, salt=SALT).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def require_share(share: float) -> None:
    """Check that a share of held-out prompts is from 0 to below 1.

    Raises:
        UserError: The share is out of range.
    """
    if not 0 <= share < 1:  # also rejects NaN
        raise UserError(f"held_out={share}: must be a share of the prompts, from 0 to below 1")
