"""Embeddings of texts as rows of length 1, from a language model or a sentence encoder.

Begin with `pooling.py` (`embed_texts()`), then `registry.py` (embedders by name) and `store.py` (embeddings.pt).
"""
