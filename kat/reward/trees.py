"""Trees: a prompt with its completions as one row of tokens. Main entries: `encode_pair()` and `pack()`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kat.data.chat import encode_completion, encode_prompt
from kat.data.formats import Message
from kat.training.tree_mask import tree_mask
from latentwire.lm.batching import pack_joined, pack_padded
from latentwire.lm.prefixes import common_beginning


@dataclass(frozen=True)
class Tree:
    """Token ids of a prompt and of its completions, each of at least one token."""

    prompt: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """Number of positions in a row."""
        return len(self.prompt) + sum(map(len, self.completions))


def encode_pair(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], chosen: str, rejected: str, max_length: int
) -> tuple[Tree, int] | None:
    """Return a pair as tokens. A long prompt loses tokens from the left, the same for both completions.

    Args:
        tokenizer: The model's tokenizer.
        prompt: Messages with role and content.
        chosen: Text of the chosen completion.
        rejected: Text of the rejected completion.
        max_length: Maximum number of tokens of the prompt with the longer completion.

    Returns:
        The tree, with the chosen completion first, and the number of tokens that the prompt lost. None if a completion
        leaves no room for any token of the prompt.
    """
    before = encode_prompt(tokenizer, prompt)
    answers = tuple(encode_completion(tokenizer, chosen)), tuple(encode_completion(tokenizer, rejected))
    room = max_length - max(map(len, answers))
    return (Tree(tuple(before[-room:]), answers), max(0, len(before) - room)) if room >= 1 else None


@dataclass(frozen=True)
class Packed:
    """Trees as the rows of one batch, padded on the right."""

    input_ids: Tensor  # (B, T)
    position_ids: Tensor  # (B, T)
    attention_mask: Tensor  # (B, 1, T, T), added to the attention scores
    rows: Tensor  # (S,), row of each completion, tree by tree
    ends: Tensor  # (S,), column of the last token of each completion


def pack(trees: Sequence[Tree], pad: int, device: torch.device, dtype: torch.dtype) -> Packed:
    """Return trees as the rows of a batch: the prompt, then its completions one after the other.

    Args:
        trees: At least one tree.
        pad: Token id for padding.
        device: Device of the tensors.
        dtype: Data type of the attention mask.
    """
    width = max(tree.size for tree in trees)
    ids = torch.full((len(trees), width), pad, dtype=torch.long)
    positions = torch.zeros(len(trees), width, dtype=torch.long)
    branch = torch.full((len(trees), width), -1, dtype=torch.long)  # 0: the prompt, -1: padding
    rows, ends = [], []
    for row, tree in enumerate(trees):
        start = len(tree.prompt)
        ids[row, :start] = torch.tensor(tree.prompt, dtype=torch.long)
        positions[row, :start] = torch.arange(start)
        branch[row, :start] = 0
        for number, completion in enumerate(tree.completions, 1):
            stop = start + len(completion)
            ids[row, start:stop] = torch.tensor(completion, dtype=torch.long)
            positions[row, start:stop] = torch.arange(len(tree.prompt), len(tree.prompt) + len(completion))
            branch[row, start:stop] = number
            rows.append(row)
            ends.append(stop - 1)
            start = stop
    mask = tree_mask(branch, dtype)[:, None]
    return Packed(ids.to(device), positions.to(device), mask.to(device), torch.tensor(rows, device=device),
                  torch.tensor(ends, device=device))  # fmt: skip


def shared_start(prompts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the tokens that all prompts start with, shorter than every prompt; empty for fewer than two prompts."""
    length = common_beginning(prompts)
    return prompts[0][:length] if length else ()


def batches_of(trees: Sequence[Tree], batch_tokens: int) -> list[list[int]]:
    """Group trees of similar size, largest first, into batches of at most `batch_tokens` positions with padding.

    Returns:
        Indices into `trees`, batch by batch. A tree that is larger than that gets a batch of its own.
    """
    return pack_padded([tree.size for tree in trees], batch_tokens)


def merged(trees: Iterable[Tree]) -> list[Tree]:
    """Return one tree for each prompt, with all its different completions in the given trees."""
    found: dict[tuple[int, ...], dict[tuple[int, ...], None]] = {}
    for tree in trees:
        found.setdefault(tree.prompt, {}).update(dict.fromkeys(tree.completions))
    return [Tree(prompt, tuple(completions)) for prompt, completions in found.items()]


def trees_of(prompt: tuple[int, ...], completions: Iterable[tuple[int, ...]], batch_tokens: int) -> list[Tree]:
    """Return a prompt's completions as trees of at most `batch_tokens` positions, or of one completion each."""
    parts = list(completions)
    groups = pack_joined([len(part) for part in parts], batch_tokens - len(prompt))
    return [Tree(prompt, tuple(parts[i] for i in group)) for group in groups]
