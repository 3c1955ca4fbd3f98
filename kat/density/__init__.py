"""Density of prompts among their neighbours, sampling weights, diagnostics, clusters and the 3-D map.

Begin with `estimate.py` (`estimate()`), then `diagnostics.py` (the effect of the weights).
"""
