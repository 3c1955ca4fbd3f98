"""A small planted world to study mode collapse on: its language, its prompts, its base model, and what is true in it.

Begin reading in `language.py` (topics, prompts and valid answers), then `truth.py` (what is measured of a policy).
"""
