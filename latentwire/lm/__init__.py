"""The frozen language model: loading, decoding from embeddings, gradients to its inputs, and its vocabulary.

Begin with `models.py` (`load_model()`), then `decoding.py` (`Decoder`), `reader.py` and `vocabulary.py`.
"""
