"""Colours of figures, distinguishable for colour-blind readers."""

from __future__ import annotations

BLUE, GREY, ORANGE = "#3366aa", "#888888", "#cc6600"
