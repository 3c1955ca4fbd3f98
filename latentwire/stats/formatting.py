"""Scores as text. Main entry: `format_score()`."""

from __future__ import annotations


def format_p(p_value: float) -> str:
    """Return a p-value with three digits: p=0.041, or p<0.001."""
    return "p<0.001" if p_value < 0.001 else f"p={p_value:.3f}"


def format_score(value: float) -> str:
    """Return a score with three digits: .512, -.040 or 1.000."""
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text
