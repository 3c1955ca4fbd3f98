"""Levels of a source's distortion, from mild to severe. Main entry: `Ladder`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Axis = Literal["linear", "log"]


@dataclass(frozen=True)
class Ladder:
    """Levels of one source, from mild to severe.

    Args:
        dial: Dial that sets the level.
        unit: Unit of the level.
        axis: "linear" or "log"; F1 between two levels is interpolated linearly on this axis.
        rising: Whether a higher level distorts more.
        clean: Level that distorts nothing; None if it is infinite. It does not count among the measured levels.
        label: Name of the ladder if the source has two.
        source: Name of the source; `register_source` sets it.
    """

    dial: str
    unit: str
    axis: Axis
    rising: bool
    clean: float | None
    label: str = ""
    source: str = ""

    @property
    def name(self) -> str:
        """Name of the ladder."""
        return self.label or self.source

    def position(self, level: float) -> float:
        """Return the position of a level on the axis; a higher position distorts more."""
        value = math.log(level) if self.axis == "log" else level
        return value if self.rising else -value

    def level(self, position: float) -> float:
        """Return the level at a position on the axis."""
        value = position if self.rising else -position
        return math.exp(value) if self.axis == "log" else value
