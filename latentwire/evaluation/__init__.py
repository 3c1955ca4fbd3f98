"""One configuration, scored: a source of embeddings and a transform, evaluated on questions about passages.

Begin with `evaluate.py` (embeddings to scored answers); `task.py` runs it as a task and stores its result.
"""
