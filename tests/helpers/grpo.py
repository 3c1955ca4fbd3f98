"""Settings of the GRPO objective."""

from __future__ import annotations

from kat.grpo.objective import Objective

USUAL = {"epsilon": 0.2, "beta": 0.0, "kl": "k3", "kl_correction": False, "normalisation": "token", "scale": "group"}


def objective(**settings: object) -> Objective:
    """Return an objective with the usual settings, some of them changed."""
    return Objective(**{**USUAL, **settings})
