"""Prompts kept from training: the same for every seed, by id alone."""

from __future__ import annotations

import hashlib

import pytest

from kat.heldout import held_out
from latentwire.harness.errors import UserError

IDS = [f"{number:016x}" for number in range(4000)]


@pytest.mark.parametrize("share", [0.05, 0.2, 0.7])
def test_about_the_share_is_held_out(share):
    chosen = sum(held_out(name, share) for name in IDS)
    assert abs(chosen - share * len(IDS)) < 4 * (len(IDS) * share * (1 - share)) ** 0.5


def test_a_larger_share_holds_out_the_same_and_more():
    small = {name for name in IDS if held_out(name, 0.1)}
    large = {name for name in IDS if held_out(name, 0.3)}
    assert small < large


def test_the_rule_is_the_id_under_a_fixed_salt():
    digest = hashlib.blake2b(b"abc", digest_size=8, salt=b"held-out prompts").hexdigest()
    place = int(digest, 16) / 2**64
    assert held_out("abc", place + 1e-9) and not held_out("abc", place - 1e-9)
    # Written out: if this changes, earlier runs trained on what is held out now.
    assert [name for name in ("a", "b", "c", "d", "e", "f", "g", "h") if held_out(name, 0.5)] == ["b", "d", "f"]


def test_nothing_is_held_out_of_share_0():
    assert not any(held_out(name, 0) for name in IDS)


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(UserError, match="held_out="):
        held_out("abc", share)
