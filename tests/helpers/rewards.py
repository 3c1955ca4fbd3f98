"""Reward functions that GRPO tests name in the config."""

from __future__ import annotations

from collections.abc import Sequence


def vowels(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Return the share of vowels: a reward that a model of random weights can learn to raise."""
    return [sum(letter in "aeiou" for letter in text) / (1 + len(text)) for text in completions]


def constant(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Return the same reward for every completion."""
    return [0.1] * len(completions)


def of_place(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Return a reward that only the prompt decides, from 0 for "A?" to 7/8 for "H?": no rounding can change it."""
    return ["ABCDEFGH".index(prompt.strip()[-2]) / 8 for prompt in prompts]


def equal_for_half(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Return the share of vowels, and the same reward for all completions of the prompts about France and Rome."""
    shares = vowels(prompts, completions)
    return [0.5 if "France" in prompt or "Rome" in prompt else x for prompt, x in zip(prompts, shares, strict=True)]
