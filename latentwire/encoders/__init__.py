"""Encoders: trained modules that compress a passage to latents, with their adapter and their folder on disk.

Begin with `base.py` (`Encoder`, the base class), then `registry.py` (`build_encoder()`) and `pipeline.py` (`Latents`).
"""
