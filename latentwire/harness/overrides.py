"""Grids of a sweep as text for the command line. Main entry: `grids_override()`."""

from __future__ import annotations

import json

Grid = dict[str, object]  # setting -> its value, or the list of its values


def grids_override(grids: list[Grid]) -> str:
    """Return the override, quoted for a shell, that sweeps over grids."""
    written = ",".join(
        "{" + ", ".join(f"{key}: {_grid_values(value)}" for key, value in grid.items()) + "}" for grid in grids
    )
    return f"'sweep.grids=[{written}]'"


def _grid_values(value: object) -> str:
    if isinstance(value, list):
        return _grid_values(value[0]) if len(value) == 1 else f"[{','.join(map(_grid_values, value))}]"
    return override_value(value)


def override_value(value: object) -> str:
    """Return a value as an override of Hydra writes it; its keys have no quotes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {override_value(each)}" for key, each in value.items()) + "}"
    return value if isinstance(value, str) else json.dumps(value)
