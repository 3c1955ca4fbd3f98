"""Reward model of task=reward: training by Bradley-Terry, scoring of completions, and the report on held-out pairs.

Begin reading in `task.py` (`reward()`, the training), then `scoring.py` (`score()`, which GRPO uses too).
"""
