"""What the results of a sweep show: comparisons, controls, rankings, tolerances. Pure functions of the results.

Begin with `ranking.py` (`analyze()` makes the whole analysis); `controls.py` compares the results of one source.
"""
