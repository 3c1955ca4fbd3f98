"""Group relative policy optimisation as pure functions: advantages, clipped surrogate, KL, normalisation, counts.

Shapes: P prompts, G completions of each, B completions of a micro-batch, C tokens of the longest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentwire.harness.errors import UserError

SCALE_REWARDS = ("group", "none")
KL_ESTIMATORS = ("k1", "k2", "k3")
LOSS_TYPES = ("dapo", "grpo")
STD_EPSILON = 1e-4  # TRL's
DEGENERATE = 1e-8  # a group whose rewards spread less than this teaches nothing


@dataclass
class GRPOObjective:
    """What is maximised: the settings of the loss.

    Args:
        epsilon: Half-width of the range that the probability ratio is clipped to.
        beta: Weight of the KL divergence from the reference; 0 needs no reference.
        kl: Its estimator for each token, one of KL_ESTIMATORS (see `kl_divergence`).
        use_bias_correction_kl: Whether the estimate is multiplied by the probability ratio, as TRL does by default.
        loss_type: `dapo` or `grpo` (see `loss_weights`).
        scale_rewards: `group` or `none` (see `advantages`).
    """

    epsilon: float
    beta: float
    kl: str
    use_bias_correction_kl: bool
    loss_type: str
    scale_rewards: str

    def check(self) -> None:
        """Refuse values that are none.

        Raises:
            UserError: Says which, and what it may be.
        """
        if not 0 < self.epsilon < 1:
            raise UserError(f"grpo.epsilon={self.epsilon}: the clip range must be above 0 and below 1; 0.2 is usual")
        if self.beta < 0:
            raise UserError(f"grpo.beta={self.beta}: the weight of the KL divergence cannot be negative")
        known = {"kl": KL_ESTIMATORS, "loss_type": LOSS_TYPES, "scale_rewards": SCALE_REWARDS}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise UserError(f"grpo.{name}={getattr(self, name)}: unknown; use one of {', '.join(values)}")


def advantages(rewards: Tensor, scale_rewards: str = "group") -> Tensor:
    """Return how much better each completion is than its group: (P, G) -> (P, G).

    The reward minus the group's mean; with scale `group` divided by the group's standard deviation (with G - 1, as
    TRL) plus 1e-4 (Shao et al. 2024, arXiv 2402.03300); with `none` left as it is (Liu et al. 2025, arXiv 2503.20783:
    the division favours groups that hardly differ). A group of equal rewards gets zeros.

    Raises:
        UserError: Fewer than two completions a prompt: a group of one is its own mean.
    """
    if rewards.shape[1] < 2:
        raise UserError(
            f"grpo.num_generations={rewards.shape[1]}: advantages compare the completions of a prompt with one "
            "another; use at least 2"
        )
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    centred = centred.masked_fill(_equal(rewards)[:, None], 0.0)  # a mean may miss equal numbers by rounding
    if scale_rewards == "none":
        return centred
    return centred / (rewards.std(dim=1, keepdim=True) + STD_EPSILON)


def degenerate_groups(rewards: Tensor) -> int:
    """Count the groups whose rewards are all equal, (P, G): they have no advantage to learn from."""
    return int(_equal(rewards).sum())


def _equal(rewards: Tensor) -> Tensor:
    return rewards.amax(dim=1) - rewards.amin(dim=1) <= DEGENERATE


def per_token_logps(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """Return the log-probability of sampled tokens, (B, C), in nats.

    Args:
        logits: What each token was drawn from, (B, C, V).
        tokens: The tokens, (B, C).
        temperature: Divides the logits: the policy is what is sampled from. A top_p leaves no trace here, as in TRL:
            the distribution is the whole one.
    """
    scaled = logits.float() / temperature
    return scaled.gather(-1, tokens[..., None])[..., 0] - scaled.logsumexp(dim=-1)


def per_token_entropy(logits: Tensor, temperature: float) -> Tensor:
    """Return the entropy of what each token is drawn from, in nats: (B, C, V) -> (B, C)."""
    logps = (logits.float() / temperature).log_softmax(dim=-1)
    return -(logps.exp() * logps).sum(dim=-1)


def kl_divergence(logps: Tensor, ref_logps: Tensor, estimator: str = "k3") -> Tensor:
    """Estimate the KL divergence of the policy from the reference at each token, (B, C).

    With r = ref_logps - logps (Schulman 2020, "Approximating KL divergence"):
    k1 = -r is unbiased and of high variance, and its gradient is zero on average, so that it holds nothing back as a
    term of the loss; k2 = r^2 / 2 is biased, its gradient is that of the KL divergence; k3 = exp(r) - r - 1 is
    unbiased and never negative, and what GRPO uses.
    """
    r = ref_logps - logps
    if estimator == "k1":
        return -r
    if estimator == "k2":
        return r.square() / 2
    return r.exp() - r - 1


def loss_weights(mask: Tensor, loss_type: str, tokens: int, sequences: int) -> Tensor:
    """Return the weight of each token in the loss, (B, C); over the whole batch of all processes they sum to 1.

    dapo: every token weighs the same, 1 / tokens (Yu et al. 2025, arXiv 2503.14476, "DAPO"). grpo: every
    completion weighs the same, shared among its tokens (the original GRPO); TRL's `grpo` also counts completions that
    are masked as a whole in the denominator, which is not done here.

    Args:
        mask: 1 where a token counts, (B, C).
        loss_type: One of LOSS_TYPES.
        tokens: Tokens that count in the whole batch, over all micro-batches and processes.
        sequences: Completions with at least one such token in the whole batch.
    """
    counted = mask.float()
    if loss_type == "dapo":
        return counted / max(tokens, 1)
    return counted / counted.sum(dim=1, keepdim=True).clamp_min(1) / max(sequences, 1)


@dataclass(frozen=True)
class Terms:
    """The loss of some completions, and what is shown of it."""

    loss: Tensor  # (), with gradient
    kl: Tensor  # (B, C), zeros without a reference and where no token counts
    clipped: Tensor  # (B, C) bool: the ratio left the range in the direction that its advantage pulls


def grpo_loss(
    logps: Tensor,
    old_logps: Tensor,
    ref_logps: Tensor | None,
    advantage: Tensor,
    weights: Tensor,
    objective: GRPOObjective,
) -> Terms:
    """Return the clipped surrogate plus beta times the KL divergence, to be minimised.

    -min(ratio * A, clip(ratio, 1 - epsilon, 1 + epsilon) * A) + beta * KL at each token, ratio = exp(logps - old_logps)
    (Schulman et al. 2017, equation 7; Shao et al. 2024, equation 3). With `use_bias_correction_kl` KL is multiplied by the
    ratio, gradient and all: the tokens were drawn from the old policy, and only so the gradient of a k3 estimate is
    that of the divergence from the reference (DeepSeek-V3.2, arXiv 2512.02556).

    Args:
        logps: Log-probabilities under the policy, (B, C), with gradient.
        old_logps: Those of the policy that sampled, (B, C).
        ref_logps: Those of the reference, (B, C); None where beta is 0.
        advantage: Of each completion, (B,).
        weights: Of each token, as `loss_weights` gives them, (B, C); 0 leaves a token out whatever its values are.
        objective: The settings.
    """
    counts = weights > 0
    logps, old_logps = torch.where(counts, logps, 0.0), torch.where(counts, old_logps, 0.0)
    ratio = (logps - old_logps).exp()
    clipped_ratio = ratio.clamp(1 - objective.epsilon, 1 + objective.epsilon)
    a = advantage[:, None]
    per_token = -torch.min(ratio * a, clipped_ratio * a)
    kl = torch.zeros_like(logps)
    if ref_logps is not None:
        kl = kl_divergence(logps, torch.where(counts, ref_logps, 0.0), objective.kl)
        per_token = per_token + objective.beta * kl * (ratio if objective.use_bias_correction_kl else 1)
    low = (ratio < 1 - objective.epsilon) & (a < 0)
    high = (ratio > 1 + objective.epsilon) & (a > 0)
    return Terms((per_token * weights).sum(), kl.detach(), (low | high) & counts)
