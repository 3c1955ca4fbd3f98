"""Reward functions that GRPO tests name in the config."""

from __future__ import annotations

from collections.abc import Sequence


def vowels(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Return the share of vowels: a reward that a model of random weights can learn to raise."""
    return [sum(letter in "aeiou" for letter in text) / (1 + len(text)) for text in completions]


def constant(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Return the same reward for every completion."""
    return [0.1] * len(completions)
