"""Batches of prompts of similar length, and beginnings that prompts share. Main entry: `plan_batches()`."""

from __future__ import annotations

import itertools

from torch import Tensor

WORTH_SHARING = 8  # fewest common positions for which two prompts share a beginning
WORTH_SAVING = 0.1  # least share of a batch's positions that sharing must save


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
    batches: list[list[int]] = []
    widest = 0  # positions of the last batch's longest row
    for index in sorted(range(len(lengths)), key=lambda i: (-longest[passages[i]], passages[i], -lengths[i], i)):
        width = max(widest, lengths[index] + added)
        if batches and (len(batches[-1]) + 1) * width <= batch_tokens:
            batches[-1].append(index)
            widest = width
        else:
            batches.append([index])
            widest = lengths[index] + added
    return batches


def split_beginnings(prompts: list[Tensor]) -> tuple[list[int], list[int]]:
    """Find neighbouring prompts with bit-identical beginnings, and the position at which to cut each prompt.

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
