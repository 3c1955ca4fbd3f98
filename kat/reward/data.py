"""Pairs for the reward model: as tokens, split by prompt, with the weights by which prompts are drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kat.data.chat import completion_text
from kat.data.heldout import held_out
from kat.data.pairs import PreferencePair
from kat.data.prompts import prompt_id
from kat.reward.trees import Tree, encode_pair
from latentwire.harness.errors import UserError


@dataclass(frozen=True)
class RewardPair:
    """A pair as tokens; the chosen completion is the tree's first."""

    prompt_id: str
    source: str
    tree: Tree
    lengths: tuple[int, int]  # characters of chosen and rejected


@dataclass
class RewardData:
    """What is trained on and what is held out; no prompt is in both."""

    train: dict[str, list[RewardPair]] = field(default_factory=dict)  # by prompt id, in order of the file
    held_out: list[RewardPair] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def train_pairs(self) -> list[RewardPair]:
        """All pairs of the training prompts."""
        return [pair for pairs in self.train.values() for pair in pairs]


def encode_all(
    tokenizer: Any, pairs: Iterable[PreferencePair], max_length: int
) -> tuple[list[RewardPair], Counter[str]]:
    """Return pairs as tokens, and counts: pairs, too_long (dropped), trimmed, tokens_trimmed.

    A pair is dropped where an answer alone has `max_length` tokens or more; a prompt that is too long loses tokens
    from the left.
    """
    found: list[RewardPair] = []
    counts = Counter({"pairs": 0, "too_long": 0, "trimmed": 0, "tokens_trimmed": 0})
    for pair in pairs:
        texts = completion_text(pair.chosen), completion_text(pair.rejected)
        encoded = encode_pair(tokenizer, pair.prompt, *texts, max_length)
        if encoded is None:
            counts["too_long"] += 1
            continue
        tree, trimmed = encoded
        counts["pairs"] += 1
        counts["trimmed"] += trimmed > 0
        counts["tokens_trimmed"] += trimmed
        found.append(RewardPair(prompt_id(pair.prompt), pair.source, tree, (len(texts[0]), len(texts[1]))))
    return found, counts


def describe_counts(counts: Mapping[str, int], max_length: int) -> str:
    """Say how many pairs there are, and what was dropped or cut."""
    said = f"{counts['pairs']} pairs"
    if counts["too_long"]:
        said += f"; {counts['too_long']} dropped: an answer of {max_length} tokens or more"
    if counts["trimmed"]:
        said += f"; {counts['trimmed']} prompts cut from the left to fit max_length={max_length}"
        said += f" ({counts['tokens_trimmed']} tokens)"
    return said


def split_pairs(pairs: Iterable[RewardPair], share: float) -> RewardData:
    """Hold out all pairs of about `share` of the prompts, the same ones for every arm and seed.

    Raises:
        UserError: Nothing is left to train on, or nothing is held out.
    """
    data = RewardData()
    for pair in pairs:
        if held_out(pair.prompt_id, share):
            data.held_out.append(pair)
        else:
            data.train.setdefault(pair.prompt_id, []).append(pair)
    if not data.train or not data.held_out:
        which = "to train on" if not data.train else "held out"
        raise UserError(
            f"held_out={share}: of {len(data.train) + len({p.prompt_id for p in data.held_out})} prompts none is "
            f"{which}; choose another share, or read more pairs"
        )
    return data
