"""Preference data: rows of a data set become checked pairs, and pairs become unique prompts with stable ids.

Begin with `pairs.py` (reads data sets), then `prompts.py` (deduplicates prompts).
"""
