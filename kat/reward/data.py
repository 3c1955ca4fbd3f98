"""Preference pairs as tokens, split by prompt into training and held-out pairs.

Main entries: `encode_all()` and `split_pairs()`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kat.data.chat import completion_text
from kat.data.heldout import held_out
from kat.data.pairs import PreferencePair
from kat.data.prompts import prompt_id
from kat.reward.trees import Tree, encode_pair
from latentwire.harness.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class RewardPair:
    """A preference pair as tokens; the first completion of the tree is the chosen one."""

    prompt_id: str
    source: str
    tree: Tree
    lengths: tuple[int, int]  # characters of the chosen and of the rejected completion


@dataclass
class RewardData:
    """The training pairs and the held-out pairs; no prompt is in both."""

    train: dict[str, list[RewardPair]] = field(default_factory=dict)  # by prompt id, in the order of the file
    held_out: list[RewardPair] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def train_pairs(self) -> list[RewardPair]:
        """All pairs of the training prompts."""
        return [pair for pairs in self.train.values() for pair in pairs]


def encode_all(
    tokenizer: PreTrainedTokenizerBase, pairs: Iterable[PreferencePair], max_length: int
) -> tuple[list[RewardPair], Counter[str]]:
    """Return pairs as tokens, and counts of pairs.

    A pair is dropped if an answer alone has `max_length` tokens or more. A prompt that is too long loses tokens from
    the left.

    Args:
        tokenizer: The model's tokenizer.
        pairs: Pairs of messages.
        max_length: Maximum number of tokens of a prompt with its longer answer.

    Returns:
        The pairs that fit, and the counts pairs, too_long (dropped), trimmed (prompts) and tokens_trimmed.
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
    """Return the counts of `encode_all` as text: pairs, dropped pairs and trimmed prompts."""
    text = f"{counts['pairs']} pairs"
    if counts["too_long"]:
        text += f"; {counts['too_long']} dropped: an answer of {max_length} tokens or more"
    if counts["trimmed"]:
        text += f"; {counts['trimmed']} prompts cut from the left to fit max_length={max_length}"
        text += f" ({counts['tokens_trimmed']} tokens)"
    return text


def split_pairs(pairs: Iterable[RewardPair], share: float) -> RewardData:
    """Split pairs by prompt. A hash decides which prompts are held out, so they are the same for every arm and seed.

    Args:
        pairs: All pairs.
        share: Share of the prompts to hold out.

    Raises:
        UserError: The training part or the held-out part is empty.
    """
    data = RewardData()
    for pair in pairs:
        if held_out(pair.prompt_id, share):
            data.held_out.append(pair)
        else:
            data.train.setdefault(pair.prompt_id, []).append(pair)
    if not data.train or not data.held_out:
        part = "to train on" if not data.train else "held out"
        raise UserError(
            f"held_out={share}: of {len(data.train) + len({p.prompt_id for p in data.held_out})} prompts none is "
            f"{part}; choose another share, or read more pairs"
        )
    return data
