"""Sampling weights of the arms of the experiment, and draws by weight. Main entries: `prompt_weights()`, `draw()`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from latentwire.harness.errors import UserError

ARMS = ("uniform", "density", "reversed", "shuffled")


def checked_weights(weights: Tensor | Sequence[float]) -> Tensor:
    """Return weights normalised to sum 1, (N,) float64.

    Args:
        weights: One number for each row, (N,).

    Raises:
        UserError: The weights are not one row of numbers, or are negative, not finite or all 0.
    """
    w = torch.as_tensor(weights, dtype=torch.float64).detach().cpu().clone()
    if w.ndim != 1 or len(w) == 0:
        raise UserError(f"weights of shape {tuple(w.shape)}: must be one number per prompt, (N,); make them again")
    bad = ~(w.isfinite() & (w >= 0))
    if bad.any():
        row = int(bad.nonzero()[0])
        raise UserError(f"weight {float(w[row])} of row {row}: must be finite and not negative; make the weights again")
    if w.sum() == 0:
        raise UserError("all weights are 0, so nothing can be drawn; make the weights again")
    return w / w.sum()


def draw(weights: Tensor, count: int, *, replacement: bool, generator: torch.Generator) -> Tensor:
    """Return rows drawn by weight, (count,) int64. N may exceed 2^24, the limit of torch.multinomial.

    With replacement, draws invert the cumulative weights. Without, they follow Efraimidis and Spirakis (2006): the
    `count` smallest of E_i / w_i with E_i exponential, in that order.

    Args:
        weights: The sampling weights, (N,) float64, sum 1. A row of weight 0 is never drawn.
        count: The number of draws; without replacement at most the number of positive weights.
        replacement: Whether a row may be drawn twice.
        generator: The source of the random numbers.
    """
    if replacement:
        cumulative = weights.cumsum(0)
        uniform = torch.rand(count, generator=generator, dtype=torch.float64) * cumulative[-1]
        last = int(weights.nonzero()[-1])
        return torch.searchsorted(cumulative, uniform, right=True).clamp(max=last)
    exponential = torch.empty(len(weights), dtype=torch.float64).exponential_(generator=generator)
    return (exponential / weights).topk(count, largest=False, sorted=True).indices


def expected_draws(weights: Tensor, count: int, replacement: bool) -> Tensor:
    """Return the expected number of draws of each row, (N,) float64.

    Without replacement it is the limit for many rows: 1 - exp(-w_i t), with t chosen so that the sum is `count`.

    Args:
        weights: The sampling weights, (N,) float64, sum 1.
        count: The number of draws.
        replacement: Whether a row may be drawn twice.
    """
    if replacement or count == 0:
        return weights * count
    if count == int((weights > 0).sum()):
        return (weights > 0).double()
    low, high = 0.0, 1.0
    while float(-torch.expm1(-weights * high).sum()) < count:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        too_few = float(-torch.expm1(-weights * middle).sum()) < count
        low, high = (middle, high) if too_few else (low, middle)
    return -torch.expm1(-weights * high)


def arm_weights(arm: str, weights: Tensor | Sequence[float], seed: int) -> Tensor:
    """Return the sampling weights of one arm of the experiment, (N,) float64, sum 1.

    uniform: equal weights. density: the given weights. reversed: the given weights in opposite order, so the rarest
    prompt gets the smallest weight. shuffled: the given weights, assigned at random. The last two are controls:
    prompts repeat as often as in density, but their weights do not rise with rarity.

    Args:
        arm: The arm, one of `ARMS`.
        weights: The weights of task=density, (N,).
        seed: The seed of the arm shuffled.

    Raises:
        UserError: The arm is unknown, or the weights are invalid.
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


def prompt_weights(
    train: Sequence[str], arm: str, measured: Mapping[str, float], unread: Iterable[str], seed: int
) -> tuple[Tensor, int]:
    """Return the sampling weights of the training prompts in an arm.

    The arm is computed among the training prompts, so density, reversed and shuffled have the same histogram there.

    Args:
        train: The ids of the N training prompts.
        arm: The arm, see `arm_weights`.
        measured: The weights of task=density by prompt id; the arm uniform ignores them.
        unread: The ids of prompts that were too long for the embedder. They get the weight 0.
        seed: The seed of the arm shuffled.

    Returns:
        The weights, (N,) float64, sum 1, and the number of training prompts without a measured weight.

    Raises:
        UserError: The arm is unknown, or a prompt has no measured weight and is not in `unread`.
    """
    if arm == "uniform":
        return torch.full((len(train),), 1 / len(train), dtype=torch.float64), 0
    left_out = set(unread) - measured.keys()
    if unknown := [name for name in train if name not in measured and name not in left_out]:
        raise UserError(
            f"sampler={arm}: {len(unknown)} of {len(train)} prompts have pairs but no weight, {unknown[0]} for "
            "instance; run task=prompts, task=embed and task=density again on these pairs"
        )
    rows = [row for row, name in enumerate(train) if name in measured]
    weights = torch.zeros(len(train), dtype=torch.float64)
    weights[rows] = arm_weights(arm, [measured[train[row]] for row in rows], seed)
    return weights, len(train) - len(rows)
