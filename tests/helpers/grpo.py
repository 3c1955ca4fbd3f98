"""Settings of the GRPO objective."""

from __future__ import annotations

from kat.grpo.objective import GRPOObjective

USUAL = {
    "epsilon": 0.2,
    "epsilon_high": None,
    "beta": 0.0,
    "kl": "k3",
    "use_bias_correction_kl": False,
    "loss_type": "dapo",
    "scale_rewards": "group",
    "entropy_coef": 0.0,
    "top_entropy_quantile": 1.0,
}


def objective(**settings: object) -> GRPOObjective:
    """Return an objective with the usual settings, some of them changed."""
    return GRPOObjective(**{**USUAL, **settings})
