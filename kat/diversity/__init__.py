"""Comparisons of trained checkpoints by the diversity of their completions, for one pair of runs or several.

Begin with `task.py` (`diversity()`) and `metrics.py`; `verdict_task.py` combines the reports of several pairs.
"""
