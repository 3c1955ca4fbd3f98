"""Transforms: repairs that turn embeddings a frozen LM cannot use into ones that it can.

Begin with `base.py` (`Transform`, the base class), then `registry.py` (`build_transform()`).
"""
