"""Faults planted on purpose, to prove that the detectors see them. Begin with `catalogue.py`."""
