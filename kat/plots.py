"""Plots as PNG files: what sampling weights do, how training went, and how two arms differ."""

from __future__ import annotations

BLUE, GREY, ORANGE = "#3366aa", "#888888", "#cc6600"
