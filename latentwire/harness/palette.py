"""Colours of pictures, told apart by colour-blind readers too."""

from __future__ import annotations

BLUE, GREY, ORANGE = "#3366aa", "#888888", "#cc6600"
