"""Scores as people read them."""

from __future__ import annotations


def format_score(value: float) -> str:
    """Write a score as .512, a negative one as -.040, one as 1.000."""
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text
