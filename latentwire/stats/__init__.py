"""Statistics of scores over examples: intervals of means, paired comparisons and their power.

Begin with `comparison.compare_paired()`, which compares systems with a baseline.
"""
