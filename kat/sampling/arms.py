"""Weights -> draws: the arms of the experiment, a prompt's mass on its pairs, and drawing rows by weight."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from latentwire.harness.errors import UserError

ARMS = ("uniform", "density", "reversed", "shuffled")


def checked_weights(weights: Tensor | Sequence[float]) -> Tensor:
    """Return weights as float64 of sum 1, (N,).

    Raises:
        UserError: Not one row of numbers, negative, not finite, or of sum 0.
    """
    w = torch.as_tensor(weights, dtype=torch.float64).detach().cpu().clone()
    if w.ndim != 1 or len(w) == 0:
        raise UserError(f"weights of shape {tuple(w.shape)}: expected one number per prompt")
    bad = ~(w.isfinite() & (w >= 0))
    if bad.any():
        row = int(bad.nonzero()[0])
        raise UserError(f"weight {float(w[row])} of row {row}: must be finite and not negative; make the weights again")
    if w.sum() == 0:
        raise UserError("all weights are 0, so nothing can be drawn; make the weights again")
    return w / w.sum()


def draw(weights: Tensor, count: int, *, replacement: bool, generator: torch.Generator) -> Tensor:
    """Draw rows by weight, (count,) int64, for any number of rows (torch.multinomial ends at 2^24).

    Args:
        weights: (N,) float64 of sum 1. A row of weight 0 is never drawn.
        count: Rows to draw; without replacement at most as many as have a weight.
        replacement: With: inverse of the cumulative weights. Without: see the class.
        generator: Of the random numbers.
    """
    if replacement:
        reached = weights.cumsum(0)
        uniform = torch.rand(count, generator=generator, dtype=torch.float64) * reached[-1]
        last = int(weights.nonzero()[-1])
        return torch.searchsorted(reached, uniform, right=True).clamp(max=last)
    exponential = torch.empty(len(weights), dtype=torch.float64).exponential_(generator=generator)
    return (exponential / weights).topk(count, largest=False, sorted=True).indices


def expected_draws(weights: Tensor, count: int, replacement: bool) -> Tensor:
    """Return how often each row is drawn on average in `count` draws, (N,) float64."""
    if replacement or count == 0:
        return weights * count
    if count == int((weights > 0).sum()):
        return (weights > 0).double()
    low, high = 0.0, 1.0
    while float(-torch.expm1(-weights * high).sum()) < count:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        few = float(-torch.expm1(-weights * middle).sum()) < count
        low, high = (middle, high) if few else (low, middle)
    return -torch.expm1(-weights * high)


def arm_weights(arm: str, weights: Tensor | Sequence[float], seed: int) -> Tensor:
    """Return the weights of one arm of the experiment from those of the density, (N,) float64 of sum 1.

    uniform: all equal. density: as they are. reversed: the same weights in opposite order, so that the rarest prompt
    gets what the most crowded had. shuffled: the same weights assigned at random. The last two have the same histogram
    and so the same repetition, without (or against) the meaning.

    Raises:
        UserError: An unknown arm, or weights that are none.
    """
    w = checked_weights(weights)
    if arm == "uniform":
        return torch.full_like(w, 1 / len(w))
    if arm == "density":
        return w
    if arm == "reversed":
        order = w.argsort(stable=True)
        return torch.empty_like(w).scatter(0, order, w[order.flip(0)])
    if arm == "shuffled":
        return w[torch.randperm(len(w), generator=torch.Generator().manual_seed(seed))]
    raise UserError(f"sampler={arm}: unknown; use one of {', '.join(ARMS)}")


def pair_weights(
    prompt_ids: Sequence[str], weights: Tensor, prompt_of_pair: Sequence[str], unread: Collection[str] = ()
) -> Tensor:
    """Return a weight per pair, (P,) float64 of sum 1: a prompt's mass is divided evenly among its pairs.

    Prompts without a pair, such as those of another split, leave their mass to the others in proportion. Pairs of
    `unread` prompts get the weight 0, so they are never drawn; how many they are is said in a warning.

    Args:
        prompt_ids: Ids of the N prompts.
        weights: Their weights, (N,).
        prompt_of_pair: Prompt id of each of the P pairs.
        unread: Ids of prompts that have no weight because the embedder could not read them: `too_long` in the
            embeddings.json of task=embed.

    Raises:
        UserError: A pair of any other prompt that has no weight (there is none to assume for it), or an unread prompt
            that has one.
    """
    w = checked_weights(weights)
    row = {name: i for i, name in enumerate(prompt_ids)}
    if len(row) != len(w):
        raise UserError(
            f"{len(prompt_ids)} prompt ids ({len(row)} different) for {len(w)} weights; make the weights again"
        )
    if both := sorted(set(unread) & row.keys()):
        raise UserError(f"prompt {both[0]} and {len(both) - 1} others are called unread but have a weight; give the "
                        "too_long of the embeddings that these weights were made from")  # fmt: skip
    if strangers := sorted({name for name in prompt_of_pair if name not in row} - set(unread)):
        raise UserError(
            f"prompt {strangers[0]} and {len(strangers) - 1} others have pairs but no weight; run task=density again "
            "on the prompts of these pairs, or name them as unread if the embedder left them out"
        )
    rows = torch.tensor([row.get(name, len(w)) for name in prompt_of_pair], dtype=torch.int64)  # N: unread
    if left_out := int((rows == len(w)).sum()):
        warnings.warn(f"{left_out} of {len(rows)} pairs have a prompt that the embedder could not read: they get the "
                      "weight 0 and are never drawn", stacklevel=2)  # fmt: skip
    shares = torch.cat([w, torch.zeros(1, dtype=w.dtype)]) / torch.bincount(rows, minlength=len(w) + 1)
    return checked_weights(shares[rows])


def prompt_weights(
    train: Sequence[str], arm: str, measured: Mapping[str, float], unread: Iterable[str], seed: int
) -> tuple[Tensor, int]:
    """Return the weight of each training prompt in an arm, (N,) float64 of sum 1, and how many have none.

    The arm is made among the training prompts, so that reversed and shuffled weights have the same histogram there.

    Args:
        train: Ids of the training prompts.
        arm: As in `kat.sampling.arms.arm_weights`.
        measured: Weights of task=density by prompt id; not looked at where the arm is uniform.
        unread: Ids of prompts that the embedder could not read; they are never drawn.
        seed: Of the shuffling.

    Raises:
        UserError: A prompt without a weight that is not among the unread, or an unknown arm.
    """
    if arm == "uniform":
        return torch.full((len(train),), 1 / len(train), dtype=torch.float64), 0
    left_out = set(unread) - measured.keys()
    if strangers := [name for name in train if name not in measured and name not in left_out]:
        raise UserError(
            f"sampler={arm}: {len(strangers)} of {len(train)} prompts have pairs but no weight, {strangers[0]} for "
            "instance; run task=prompts, task=embed and task=density again on these pairs"
        )
    rows = [row for row, name in enumerate(train) if name in measured]
    weights = torch.zeros(len(train), dtype=torch.float64)
    weights[rows] = arm_weights(arm, [measured[train[row]] for row in rows], seed)
    return weights, len(train) - len(rows)
