"""Draws of prompts by weight: the arms of the experiment, a torch sampler, and its use in TRL's trainers.

Begin with `sampler.py` (`DensityAwareSampler`), then `arms.py` (the arms by name) and `trl.py` (`attach()`).
"""
