"""Which prompts are kept from training, the same in every arm and for every seed; and models that have seen them."""

from __future__ import annotations

import hashlib

from latentwire.harness.errors import UserError

LEDGER = "ledger.jsonl"  # of a run: how often each training prompt was drawn

SALT = b"held-out prompts"  # part of the rule: with another one other prompts would be held out


def held_out(prompt_id: str, share: float) -> bool:
    """Tell whether a prompt is held out of training.

    The prompt's id alone decides, and no seed: runs of all arms and seeds hold out the same prompts, and a prompt that
    a smaller share holds out a larger one does too. About `share` of many prompts are held out, not exactly that many.

    Args:
        prompt_id: Id of the prompt, as in prompts_all.jsonl.
        share: Of the prompts to hold out, from 0 (none) to below 1.

    Raises:
        UserError: A share out of that range.
    """
    require_share(share)
    digest = hashlib.blake2b(prompt_id.encode(), digest_size=8, salt=SALT).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def require_share(share: float) -> None:
    """Refuse what is no share of the prompts to hold out.

    Raises:
        UserError: It is not from 0 to below 1.
    """
    if not 0 <= share < 1:  # NaN too
        raise UserError(f"held_out={share}: must be a share of the prompts, from 0 to below 1")
