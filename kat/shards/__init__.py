"""Density of prompts whose embeddings are in shards on disk, in stages that processes and machines share.

Begin with `density.py` (`ShardedDensity`), then `neighbours.py` (its stages).
"""
