"""Sources: what the LM gets in place of the passage's token embeddings, from known distortions to trained latents.

Begin with `base.py` (`Source`, the base class), then `registry.py` (`build_source()`).
"""
