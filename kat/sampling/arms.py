"""Arms by name: ways of drawing training prompts. Main entries: `build_arm()`, `register_arm()`.

`FixedWeights` is the base class of an arm whose weights are known before training, and `AdaptiveWeights` of one whose
weights change with what the steps observe.
"""

from __future__ import annotations

from collections.abc import Mapping

from kat.sampling.adaptive import AdaptiveWeights
from kat.sampling.base import ARMS, DENSITY, GROUPS, Arm, ArmInputs, Observation, RowInputs, register_arm
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
    "RowInputs",
    "arm_settings",
    "build_arm",
    "needs_density",
    "register_arm",
]


def needs_density(name: str) -> bool:
    """Return whether an arm needs the file of task=density: its weights, or its groups of near-duplicates.

    Raises:
        UserError: No arm has this name.
    """
    return bool({DENSITY, GROUPS} & set(ARMS[name].needs))


def build_arm(name: str, settings: Mapping[str, object], inputs: ArmInputs | RowInputs) -> Arm:
    """Return an arm.

    Args:
        name: Name of the arm.
        settings: Its settings: the node `sampler` of a config without the name.
        inputs: The prompts, their measured weights and the seed.

    Raises:
        UserError: The arm is unknown, a setting is unknown, missing or out of range, a prompt lacks a weight, fewer
            prompts can be drawn than a step needs, or the arm's first weights are invalid.
    """
    arm = ARMS[name](inputs, **arm_settings(name, settings))
    arm.require_valid(arm.sampling_weights)  # before any training
    return arm


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
