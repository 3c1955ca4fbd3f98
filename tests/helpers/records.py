"""Comparison of real values with the types of their records. Main entry: `mismatches()`."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any, Literal, NotRequired, Required, Union, get_args, get_origin, get_type_hints, is_typeddict


def mismatches(kind: Any, value: Any, met: set[Any] | None = None, place: str = "") -> list[str]:
    """Return where a value differs from its type: keys of records that are missing or unknown, and other types.

    Args:
        kind: A TypedDict, or what an annotation of one may contain.
        value: The value.
        met: Receives every TypedDict with which a value was compared.
        place: Where the value is, for the messages.
    """
    return list(_mismatches(kind, value, set() if met is None else met, place))


def _mismatches(kind: Any, value: Any, met: set[Any], place: str) -> Iterator[str]:
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Required, NotRequired):
        yield from _mismatches(inside[0], value, met, place)
    elif is_typeddict(kind):
        yield from _of_record(kind, value, met, place)
    elif origin in (Union, types.UnionType):
        yield from _of_union(inside, value, met, place)
    elif origin is Literal:
        yield from [] if value in inside else [f"{place}: {value!r} is not in {inside}"]
    elif origin in (list, tuple):
        yield from _of_sequence(origin, inside, value, met, place)
    elif origin is dict:
        for key, one in value.items() if isinstance(value, dict) else []:
            yield from _mismatches(inside[1], one, met, f"{place}.{key}")
        yield from [] if isinstance(value, dict) else [f"{place}: {value!r} is not a dict"]
    elif kind is float:  # as for the type checker, an int is a float
        yield from [] if isinstance(value, int | float) else [f"{place}: {value!r} is not a number"]
    elif kind not in (Any, object):
        expected = type(None) if kind is None else kind
        yield from [] if isinstance(value, expected) else [f"{place}: {value!r} is not a {expected.__name__}"]


def _of_record(kind: Any, value: Any, met: set[Any], place: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{place}: {value!r} is not a {kind.__name__}"
        return
    met.add(kind)
    hints = get_type_hints(kind, include_extras=True)
    # `__required_keys__` has the keys with NotRequired too if the annotations are texts.
    needed = {key for key in kind.__required_keys__ if get_origin(hints[key]) is not NotRequired}
    yield from (f"{place}: {kind.__name__} lacks {key}" for key in sorted(needed - value.keys()))
    yield from (f"{place}: {kind.__name__} has no {key}" for key in sorted(value.keys() - hints.keys()))
    for key in hints.keys() & value.keys():
        yield from _mismatches(hints[key], value[key], met, f"{place}.{key}")


def _of_union(kinds: tuple[Any, ...], value: Any, met: set[Any], place: str) -> Iterator[str]:
    found = []
    for kind in kinds:
        own: set[Any] = set()
        problems = mismatches(kind, value, own, place)
        if not problems:
            met |= own
            return
        found += problems
    yield from found


def _of_sequence(origin: type, inside: tuple[Any, ...], value: Any, met: set[Any], place: str) -> Iterator[str]:
    if not isinstance(value, list | tuple) or (origin is tuple and len(value) != len(inside)):
        yield f"{place}: {value!r} is not a {origin.__name__} of {inside}"
        return
    for index, one in enumerate(value):
        kind = inside[index] if origin is tuple else inside[0]
        yield from _mismatches(kind, one, met, f"{place}[{index}]")
