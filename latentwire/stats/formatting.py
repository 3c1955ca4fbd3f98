"""Scores as text. Main entry: `format_score()`."""

from __future__ import annotations


def format_score(value: float) -> str:
    """Return a score with three digits: .512, -.040 or 1.000."""
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text
