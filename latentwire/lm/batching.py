"""Which prompts are decoded together: batches by length, and what prompts begin with alike."""

from __future__ import annotations

import itertools

from torch import Tensor


def plan_batches(lengths: list[int], passages: list[str], added: int, batch_tokens: int) -> list[list[int]]:
    """Group prompts of similar length, longest first, so that no batch holds more than `batch_tokens` positions.

    Questions about one passage stay side by side, so that the passage can be read once. The plan depends on lengths
    and passages alone: the same examples are decoded in the same batches by every configuration and whatever the
    number of processes. A prompt too long for the budget gets a batch of its own.

    Args:
        lengths: Positions of each prompt.
        passages: What each prompt begins with.
        added: Positions that every row holds besides (Decoder.added).
        batch_tokens: Rows times positions of the longest, at most.

    Returns:
        Indices into `lengths`, batch by batch.
    """
    longest: dict[str, int] = {}
    for length, passage in zip(lengths, passages, strict=True):
        longest[passage] = max(length, longest.get(passage, 0))
    batches: list[list[int]] = []
    widest = 0  # of the last batch
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
    """Find neighbouring prompts that begin alike, bit for bit, and say where to cut all of them.

    Args:
        prompts: (T_i, D) each.

    Returns:
        The group of each prompt, and how many positions of it are its beginning: what the whole group shares, and for
        a prompt that shares nothing so much that what remains is as long as the others' remains. All zero where no
        positions worth a second pass are saved.
    """
    groups, shared = [0], [len(prompts[0]) - 1]
    for before, prompt in itertools.pairwise(prompts):
        limit = min(len(before), len(prompt)) - 1
        same = (before[:limit] == prompt[:limit]).all(dim=-1)
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
    remains = max(
        len(prompt) - shared[group] for prompt, group in zip(prompts, groups, strict=True) if sizes[group] > 1
    )
    cuts = [
        shared[group] if sizes[group] > 1 else max(0, len(prompt) - remains)
        for prompt, group in zip(prompts, groups, strict=True)
    ]
    return groups, cuts


WORTH_SHARING = 8  # positions that two prompts must begin alike with, to be read together


WORTH_SAVING = 0.1  # of all positions of a batch: less is not worth reading it in two parts
