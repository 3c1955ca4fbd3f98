"""Arms by name: ways of drawing training prompts. Main entries: `build_arm()`, `register_arm()`.

`FixedWeights` is the base class of an arm whose weights are known before training, and `AdaptiveWeights` of one whose
weights change with what the steps observe.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from kat.sampling.adaptive import AdaptiveWeights
from kat.sampling.base import ARMS, DENSITY, Arm, ArmInputs, Observation, register_arm
from kat.sampling.draws import checked_weights
from kat.sampling.fixed import FixedWeights
from latentwire.harness.errors import UserError
from latentwire.harness.registry import check_dials, dials_of
from latentwire.harness.results import JsonObject

__all__ = [
    "ARMS",
    "AdaptiveWeights",
    "Arm",
    "ArmInputs",
    "FixedWeights",
    "Observation",
    "arm_settings",
    "build_arm",
    "needs_density",
    "register_arm",
]


def needs_density(name: str) -> bool:
    """Return whether an arm needs the weights of task=density.

    Raises:
        UserError: No arm has this name.
    """
    return DENSITY in ARMS[name].needs


def build_arm(name: str, settings: Mapping[str, object], inputs: ArmInputs) -> Arm:
    """Return an arm.

    Args:
        name: Name of the arm.
        settings: Its settings: the node `sampler` of a config without the name.
        inputs: The prompts, their measured weights and the seed.

    Raises:
        UserError: The arm is unknown, a setting is unknown, missing or out of range, a prompt lacks a weight, or fewer
            prompts can be drawn than a step needs.
    """
    return ARMS[name](inputs, **arm_settings(name, settings))


def arm_settings(name: str, settings: Mapping[str, object]) -> JsonObject:
    """Return all settings of an arm, defaults included, after a check of their names, types and ranges.

    Args:
        name: Name of the arm.
        settings: The node `sampler` of a config without the name.

    Raises:
        UserError: The arm is unknown, or a setting is unknown, missing, of another type or out of range.
    """
    arm = ARMS[name]
    check_dials(f"sampler={name}", dict(settings), arm)
    values = {
        setting: _converted(setting, settings.get(setting, dial.default), dial.kind)
        for setting, dial in dials_of(arm).items()
    }
    arm.check_settings(values)
    return values


def _converted(setting: str, value: object, kind: type) -> object:
    """Return a value as its argument's type: a whole number given for a float becomes a float."""
    words = {int: "a whole number", float: "a number", str: "a text"}
    fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
    if kind in words and not fits:
        raise UserError(f"sampler.{setting}={value}: expected {words[kind]}")
    return float(value) if kind is float and isinstance(value, int) else value


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
