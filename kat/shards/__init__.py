"""Density of prompts whose embeddings are in shards on disk, in stages that processes and machines share.

Begin with `density.py` (`density_of_shards()`), then `neighbours.py` (its stages).
"""
