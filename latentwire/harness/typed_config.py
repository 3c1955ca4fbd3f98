"""Convert config values to dataclasses and numbers. Main entry: `typed()`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, Node, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from latentwire.harness.errors import UserError
from latentwire.harness.results import JsonObject

T = TypeVar("T")
SHORTEST_TASK = 5  # minutes of the shortest time limit of a Slurm task

_KINDS = {
    "int": "a whole number",
    "int | None": "a whole number or null",
    "float": "a number",
    "float | None": "a number or null",
    "str": "a text",
    "bool": "true or false",
    "str | None": "a text or null",
    "list[str]": "a list of texts",
    "dict[str, dict[str, Any]] | None": "settings by name, such as {NAME: {SETTING: VALUE}}, or null",
}


def typed(kind: type[T], values: object, prefix: str = "") -> T:
    """Return config values as a dataclass, after checking their names and types.

    Args:
        kind: Dataclass to build.
        values: Config node, or dict, with a value for each field.
        prefix: Text before the setting's name in error messages: 'grpo.'.

    Raises:
        UserError: A value has the wrong type, or the dataclass has no field of that name.
    """
    plain = OmegaConf.to_container(OmegaConf.create(values) if isinstance(values, dict) else values, resolve=True)
    assert isinstance(plain, dict)
    try:
        made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), plain))
    except OmegaConfBaseException as error:
        key = str(error.full_key or error.key)
        wanted = {field.name: str(field.type) for field in fields(kind)}.get(key, "no such setting")  # type: ignore[arg-type]
        raise UserError(f"{prefix}{key}={plain.get(key)}: expected {_KINDS.get(wanted, wanted)}") from error
    assert isinstance(made, kind)
    return made


def plain_values(node: DictConfig) -> JsonObject:
    """Return a config node as plain values, with interpolations resolved."""
    return cast(JsonObject, OmegaConf.to_container(node, resolve=True))


def _number(kind: type[int] | type[float], words: str) -> Callable[..., object]:
    """Return an OmegaConf resolver that converts a dial to a number, so that 1 and 1.0 give one configuration."""

    def convert(value: Any, *, _node_: Node) -> object:
        try:
            number = kind(value)
            if isinstance(value, bool) or number != float(value):
                raise ValueError
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{_node_._key()}={value}: expected {words}") from error
        return number

    return convert


def _seeds(number: object) -> list[int]:
    """Return the seeds of a grid: 0, 1, ..., number - 1."""
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise UserError(f"seeds={number}: must be a whole number of seeds, at least 1")
    return list(range(number))


def _minutes_of(hours: object) -> int:
    """Return the time limit of a Slurm task in whole minutes, rounded up."""
    if not isinstance(hours, int | float) or isinstance(hours, bool) or not SHORTEST_TASK <= 60 * hours < float("inf"):
        raise UserError(f"hours={hours}: must be a number of hours, at least {SHORTEST_TASK} minutes, because Slurm "
                        "warns a task up to 3 minutes before its time limit")  # fmt: skip
    return math.ceil(60 * hours)


def _sbatch_options(given: object) -> dict[str, object]:
    """Return the given options of sbatch, and `requeue`, by which a preempted task is queued again.

    The value false leaves an option out.
    """
    if not isinstance(given, DictConfig | None):
        raise UserError(f"slurm_options={given}: must map options of sbatch to values, such as {{constraint: h100}}")
    options = {"requeue": True, **{str(key): value for key, value in (given or {}).items()}}
    return {key: value for key, value in options.items() if value is not False}


OmegaConf.register_new_resolver("minutes_of", _minutes_of, replace=True)
OmegaConf.register_new_resolver("sbatch_options", _sbatch_options, replace=True)
OmegaConf.register_new_resolver("seeds", _seeds, replace=True)
OmegaConf.register_new_resolver("float", _number(float, "a number"), replace=True)
OmegaConf.register_new_resolver("int", _number(int, "a whole number"), replace=True)
