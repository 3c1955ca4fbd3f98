"""Group relative policy optimisation (GRPO) as pure functions. Main entries: `advantages()` and `grpo_loss()`.

Shapes: P prompts, G completions of each, B completions of a micro-batch, C tokens of the longest completion.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentwire.harness.errors import UserError

SCALE_REWARDS = ("group", "none")
KL_ESTIMATORS = ("k1", "k2", "k3")
LOSS_TYPES = ("dapo", "grpo")
STD_EPSILON = 1e-4  # as in TRL
DEGENERATE = 1e-8  # a group is degenerate if its largest and smallest reward differ by at most this


@dataclass
class GRPOObjective:
    """Settings of the loss.

    Args:
        epsilon: Half-width of the range that the probability ratio is clipped to.
        beta: Weight of the KL divergence from the reference policy; with 0 no reference policy is needed.
        kl: Estimator of the KL divergence at each token, one of KL_ESTIMATORS (see `kl_divergence`).
        use_bias_correction_kl: Whether the KL estimate is multiplied by the probability ratio, as TRL does by default.
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
        """Validate the settings.

        Raises:
            UserError: A setting is out of range or unknown.
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
    """Return the advantage of each completion over its group: (P, G) -> (P, G).

    The advantage is the reward minus the group's mean. A group of equal rewards gets zeros.

    Args:
        rewards: Rewards of the completions, (P, G).
        scale_rewards: `group` divides by the group's standard deviation (with G - 1, as in TRL) plus 1e-4 (Shao et al.
            2024, arXiv 2402.03300). `none` does not divide, since dividing favours groups with similar rewards (Liu
            et al. 2025, arXiv 2503.20783).

    Raises:
        UserError: A group has fewer than two completions.
    """
    if rewards.shape[1] < 2:
        raise UserError(
            f"grpo.num_generations={rewards.shape[1]}: advantages compare the completions of a prompt with one "
            "another; use at least 2"
        )
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    centred = centred.masked_fill(
        _equal(rewards)[:, None], 0.0
    )  # the mean of equal numbers may differ from them by rounding
    if scale_rewards == "none":
        return centred
    return centred / (rewards.std(dim=1, keepdim=True) + STD_EPSILON)


def degenerate_groups(rewards: Tensor) -> int:
    """Return the number of groups with equal rewards, (P, G) -> int; all their advantages are 0."""
    return int(_equal(rewards).sum())


def _equal(rewards: Tensor) -> Tensor:
    return rewards.amax(dim=1) - rewards.amin(dim=1) <= DEGENERATE


def per_token_logps(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """Return the log-probabilities of sampled tokens, (B, C), in nats.

    Args:
        logits: Logits that each token was drawn from, (B, C, V).
        tokens: Ids of the sampled tokens, (B, C).
        temperature: Sampling temperature, which divides the logits. As in TRL, top_p is ignored: the distribution
            covers the whole vocabulary.
    """
    scaled = logits.float() / temperature
    return scaled.gather(-1, tokens[..., None])[..., 0] - scaled.logsumexp(dim=-1)


def per_token_entropy(logits: Tensor, temperature: float) -> Tensor:
    """Return the entropy of each token's distribution at a temperature, in nats: (B, C, V) -> (B, C)."""
    logps = (logits.float() / temperature).log_softmax(dim=-1)
    return -(logps.exp() * logps).sum(dim=-1)


def kl_divergence(logps: Tensor, ref_logps: Tensor, estimator: str = "k3") -> Tensor:
    """Return an estimate of the KL divergence of the policy from the reference policy at each token, (B, C), in nats.

    With r = ref_logps - logps (Schulman 2020, "Approximating KL divergence"):
    - k1 = -r is unbiased with high variance. Its gradient is zero on average, so it does not work as a loss term.
    - k2 = r^2 / 2 is biased, but its average gradient equals the gradient of the KL divergence.
    - k3 = exp(r) - r - 1 is unbiased and never negative; GRPO uses it.

    Args:
        logps: Log-probabilities under the policy, (B, C).
        ref_logps: Log-probabilities under the reference policy, (B, C).
        estimator: One of KL_ESTIMATORS.
    """
    r = ref_logps - logps
    if estimator == "k1":
        return -r
    if estimator == "k2":
        return r.square() / 2
    return r.exp() - r - 1


def loss_weights(mask: Tensor, loss_type: str, tokens: int, sequences: int) -> Tensor:
    """Return the weight of each token in the loss, (B, C). The weights of the whole batch sum to 1.

    `dapo` gives every token the same weight, 1 / tokens (Yu et al. 2025, arXiv 2503.14476). `grpo` gives every
    completion the same weight, shared among its tokens (the original GRPO). In contrast to TRL's `grpo`, completions
    that are masked as a whole do not count in the denominator.

    Args:
        mask: 1 for tokens that count, else 0, (B, C).
        loss_type: One of LOSS_TYPES.
        tokens: Number of tokens that count in the whole batch, over all micro-batches and processes.
        sequences: Number of completions with at least one such token in the whole batch.
    """
    counted = mask.float()
    if loss_type == "dapo":
        return counted / max(tokens, 1)
    return counted / counted.sum(dim=1, keepdim=True).clamp_min(1) / max(sequences, 1)


@dataclass(frozen=True)
class GRPOLoss:
    """The loss of a micro-batch, with the quantities that are logged."""

    loss: Tensor  # (), with gradient
    kl: Tensor  # (B, C), 0 without a reference policy and for tokens that do not count
    clipped: Tensor  # (B, C) bool: the ratio is outside the range on the side that the advantage favours


def grpo_loss(
    logps: Tensor,
    old_logps: Tensor,
    ref_logps: Tensor | None,
    advantage: Tensor,
    token_weights: Tensor,
    objective: GRPOObjective,
) -> GRPOLoss:
    """Return the clipped surrogate plus beta times the KL divergence, to be minimised.

    Each token contributes, with ratio = exp(logps - old_logps):

        -min(ratio * A, clip(ratio, 1 - epsilon, 1 + epsilon) * A) + beta * KL

    (Schulman et al. 2017, equation 7; Shao et al. 2024, equation 3). With `use_bias_correction_kl`, KL is multiplied by
    the ratio, including its gradient, because the tokens were drawn from the old policy. Only then is the gradient of a
    k3 estimate equal to the gradient of the KL divergence (DeepSeek-V3.2, arXiv 2512.02556).

    Args:
        logps: Log-probabilities under the policy, (B, C), with gradient.
        old_logps: Log-probabilities under the policy that sampled, (B, C).
        ref_logps: Log-probabilities under the reference policy, (B, C); None if beta is 0.
        advantage: Advantage of each completion, (B,).
        token_weights: Weight of each token from `loss_weights`, (B, C). Tokens of weight 0 have no effect.
        objective: The settings.
    """
    counts = token_weights > 0
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
    return GRPOLoss((per_token * token_weights).sum(), kl.detach(), (low | high) & counts)
