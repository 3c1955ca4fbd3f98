"""Batches of rows within a budget of positions, and beginnings that prompts share.

Main entries: `pack_padded()`, `pack_joined()` and `plan_batches()`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from torch import Tensor

WORTH_SHARING = 8  # fewest common positions for which two prompts share a beginning
WORTH_SAVING = 0.1  # least share of a batch's positions that sharing must save


def largest_first(sizes: Sequence[int]) -> list[int]:
    """Return the indices of `sizes` from the largest size to the smallest; equal sizes keep their order."""
    return sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))


def pack_padded(sizes: Sequence[int], budget: int, order: Iterable[int] | None = None) -> list[list[int]]:
    """Return batches of rows that are padded to the longest row of their batch.

    A batch takes the next row if the number of rows times the longest row stays within the budget. A row above the
    budget gets a batch of its own.

    Args:
        sizes: Number of positions of each row.
        budget: Maximum number of positions of a batch, including padding.
        order: Indices of the rows in the order in which the batches take them; None: largest first.

    Returns:
        Indices into `sizes`, batch by batch.
    """
    batches: list[list[int]] = []
    longest = 0  # size of the longest row in the last batch
    for index in largest_first(sizes) if order is None else order:
        if batches and (len(batches[-1]) + 1) * max(longest, sizes[index]) <= budget:
            batches[-1].append(index)
            longest = max(longest, sizes[index])
        else:
            batches.append([index])
            longest = sizes[index]
    return batches


def pack_joined(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Return groups of parts that follow each other in one row, without padding.

    A group takes the next part if the sum of its sizes stays within the budget. A part above the budget gets a group of
    its own.

    Args:
        sizes: Number of positions of each part.
        budget: Maximum number of positions of a group, without a beginning that all its parts share.

    Returns:
        Indices into `sizes` in ascending order, group by group.
    """
    groups: list[list[int]] = []
    total = 0  # positions of the last group
    for index, size in enumerate(sizes):
        if groups and total + size <= budget:
            groups[-1].append(index)
            total += size
        else:
            groups.append([index])
            total = size
    return groups


def plan_batches(lengths: list[int], passages: list[str], added: int, batch_tokens: int) -> list[list[int]]:
    """Group prompts of similar length, longest first, so that no batch holds more than `batch_tokens` positions.

    Questions about one passage stay next to each other, so that the model reads the passage once. The plan depends only
    on lengths and passages: configurations and numbers of processes do not change it. A prompt longer than the budget
    gets its own batch.

    Args:
        lengths: Number of positions of each prompt.
        passages: Beginning of each prompt, as text.
        added: Further positions of every row (`Decoder.added`).
        batch_tokens: Largest number of rows times positions of the longest row.

    Returns:
        Indices into `lengths`, batch by batch.
    """
    longest: dict[str, int] = {}
    for length, passage in zip(lengths, passages, strict=True):
        longest[passage] = max(length, longest.get(passage, 0))
    order = sorted(range(len(lengths)), key=lambda i: (-longest[passages[i]], passages[i], -lengths[i], i))
    return pack_padded([length + added for length in lengths], batch_tokens, order)


def split_beginnings(prompts: list[Tensor]) -> tuple[list[int], list[int]]:
    """Find neighbouring prompts with bit-identical beginnings, and the position at which to cut each prompt.

    Unlike in `latentwire.lm.prefixes.common_beginning`, the elements are embeddings. Neighbours are therefore compared
    as tensors on their device.

    Args:
        prompts: Embeddings of the prompts, (T_i, D) each.

    Returns:
        The group number of each prompt, and the length of its beginning in positions. A group's beginning is what all
        its prompts share. A prompt alone in its group is cut so that its rest is as long as the longest other rest. All
        lengths are 0 if sharing would save less than WORTH_SAVING of the positions.
    """
    groups, shared = [0], [len(prompts[0]) - 1]
    for previous, prompt in itertools.pairwise(prompts):
        limit = min(len(previous), len(prompt)) - 1
        same = (previous[:limit] == prompt[:limit]).all(dim=-1)
        common = limit if bool(same.all()) else int(same.int().argmin())
        if common >= WORTH_SHARING:
            groups.append(groups[-1])
            shared[-1] = min(shared[-1], common)
        else:
            groups.append(groups[-1] + 1)
            shared.append(len(prompt) - 1)
    sizes = [groups.count(group) for group in range(len(shared))]
    saved = sum((size - 1) * length for size, length in zip(sizes, shared, strict=True) if size > 1)
    if saved < WORTH_SAVING * sum(len(prompt) for prompt in prompts):
        return groups, [0] * len(prompts)
    longest_rest = max(
        len(prompt) - shared[group] for prompt, group in zip(prompts, groups, strict=True) if sizes[group] > 1
    )
    cuts = [
        shared[group] if sizes[group] > 1 else max(0, len(prompt) - longest_rest)
        for prompt, group in zip(prompts, groups, strict=True)
    ]
    return groups, cuts
