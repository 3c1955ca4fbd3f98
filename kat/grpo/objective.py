"""Group relative policy optimisation (GRPO) as pure functions. Main entries: `advantages()` and `grpo_loss()`.

Shapes: P prompts, G completions of each, B completions of a micro-batch, C tokens of the longest completion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from latentwire.harness.errors import UserError

SCALE_REWARDS = ("group", "batch", "none")
KL_ESTIMATORS = ("k1", "k2", "k3")
LOSS_TYPES = ("dapo", "grpo", "bnpo", "dr_grpo", "cispo")
STD_EPSILON = 1e-4  # as in TRL
DEGENERATE = 1e-8  # a group is degenerate if its largest and smallest reward differ by at most this


@dataclass
class GRPOObjective:
    """Settings of the loss.

    Args:
        epsilon: The probability ratio is clipped to 1 - epsilon .. 1 + epsilon_high. `cispo` does not use it.
        epsilon_high: See epsilon; None takes epsilon. For `cispo` the largest ratio itself, as in TRL.
        beta: Weight of the KL divergence from the reference policy; with 0 no reference policy is needed.
        kl: Estimator of the KL divergence at each token, one of KL_ESTIMATORS (see `kl_divergence`).
        use_bias_correction_kl: Whether the KL estimate is multiplied by the probability ratio, as TRL does by default.
        loss_type: One of LOSS_TYPES (see `loss_weights` and `grpo_loss`).
        scale_rewards: One of SCALE_REWARDS (see `advantages`).
        entropy_coef: Weight of the entropy bonus: the loss is lowered by this times the mean entropy of the tokens.
        top_entropy_quantile: Share of the tokens that the surrogate acts on, highest entropy first; the KL term acts on
            all of them (Wang et al. 2025, arXiv 2506.01939).
    """

    epsilon: float
    epsilon_high: float | None
    beta: float
    kl: str
    use_bias_correction_kl: bool
    loss_type: str
    scale_rewards: str
    entropy_coef: float
    top_entropy_quantile: float

    @property
    def largest_ratio(self) -> float:
        """The probability ratio that the clipping allows at most."""
        if self.loss_type == "cispo" and self.epsilon_high is not None:
            return self.epsilon_high
        return 1 + (self.epsilon if self.epsilon_high is None else self.epsilon_high)

    def check(self) -> None:
        """Validate the settings.

        Raises:
            UserError: A setting is out of range or unknown.
        """
        if not 0 < self.epsilon < 1:
            raise UserError(f"grpo.epsilon={self.epsilon}: the clip range must be above 0 and below 1; 0.2 is usual")
        if not 0 <= self.beta < math.inf:
            raise UserError(
                f"grpo.beta={self.beta}: the weight of the KL divergence cannot be negative; 0 leaves it out"
            )
        if not 0 <= self.entropy_coef < math.inf:
            raise UserError(
                f"grpo.entropy_coef={self.entropy_coef}: the weight of the entropy bonus cannot be negative; 0 leaves "
                "it out, 0.001 to 0.01 are usual"
            )
        if not 0 <= self.top_entropy_quantile <= 1:
            raise UserError(
                f"grpo.top_entropy_quantile={self.top_entropy_quantile}: must be a share of the tokens from 0 to 1; 1 "
                "takes all, 0.2 is usual"
            )
        known = {"kl": KL_ESTIMATORS, "loss_type": LOSS_TYPES, "scale_rewards": SCALE_REWARDS}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise UserError(f"grpo.{name}={getattr(self, name)}: unknown; use one of {', '.join(values)}")
        self._check_epsilon_high()

    def _check_epsilon_high(self) -> None:
        high, setting = self.epsilon_high, f"grpo.epsilon_high={self.epsilon_high}"
        if self.loss_type == "cispo":
            if high is None or not 1 <= high < math.inf:
                raise UserError(f"{setting}: with loss_type=cispo it is the largest probability ratio, so it must be "
                                "at least 1; 5.0 is usual")  # fmt: skip
        elif high is not None and not 0 < high < math.inf:
            raise UserError(f"{setting}: the ratio is clipped to at most 1 + epsilon_high, so it must be above 0; 0.28 "
                            "is usual, null takes grpo.epsilon")  # fmt: skip


def advantages(rewards: Tensor, scale_rewards: str = "group") -> Tensor:
    """Return the advantage of each completion over its group: (P, G) -> (P, G).

    The advantage is the reward minus the group's mean. A group of equal rewards gets zeros.

    Args:
        rewards: Rewards of the completions, (P, G).
        scale_rewards: `group` divides by the group's standard deviation (with G - 1, as in TRL) plus 1e-4 (Shao et al.
            2024, arXiv 2402.03300). `batch` divides by the standard deviation of all rewards plus 1e-4, so it needs
            the groups of all processes. `none` does not divide, since dividing favours groups with similar rewards
            (Liu et al. 2025, arXiv 2503.20783).

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
        equal_rewards(rewards)[:, None], 0.0
    )  # the mean of equal numbers may differ from them by rounding
    if scale_rewards == "none":
        return centred
    if scale_rewards == "batch":
        return centred / (rewards.std() + STD_EPSILON)
    return centred / (rewards.std(dim=1, keepdim=True) + STD_EPSILON)


def degenerate_groups(rewards: Tensor) -> int:
    """Return the number of groups with equal rewards, (P, G) -> int; all their advantages are 0."""
    return int(equal_rewards(rewards).sum())


def equal_rewards(rewards: Tensor) -> Tensor:
    """Return which groups have equal rewards, (P, G) -> (P,) bool."""
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


@dataclass(frozen=True)
class BatchSize:
    """Numbers of a whole batch, over all its micro-batches and processes, that losses are divided by.

    Attributes:
        tokens: Number of tokens that count.
        sequences: Number of completions with at least one such token.
        completions: Number of all completions, also of those that are left out as a whole.
        own_tokens: Number of tokens that count in this process.
        processes: Number of processes.
        max_completion_length: Largest number of tokens of a completion.
    """

    tokens: int
    sequences: int
    completions: int
    own_tokens: int
    processes: int
    max_completion_length: int


def loss_weights(mask: Tensor, loss_type: str, size: BatchSize) -> Tensor:
    """Return the weight of each token in the loss, (B, C).

    - `dapo` and `cispo` give every token the same weight, 1 / tokens (Yu et al. 2025, arXiv 2503.14476).
    - `grpo` gives every completion the same weight, shared among its tokens (the original GRPO). In contrast to TRL's
      `grpo`, completions that are masked as a whole do not count in the denominator.
    - `bnpo` gives every process the same weight, shared among its tokens. With one process it is `dapo`. TRL also gives
      each of its gradient accumulation steps the same weight; here the split into micro-batches changes nothing.
    - `dr_grpo` divides by the constant completions x max_completion_length (Liu et al. 2025, arXiv 2503.20783).

    Except for `dr_grpo` the weights of the whole batch sum to 1.

    Args:
        mask: 1 for tokens that count, else 0, (B, C).
        loss_type: One of LOSS_TYPES.
        size: Size of the whole batch.
    """
    counted = mask.float()
    if loss_type == "grpo":
        return counted / counted.sum(dim=1, keepdim=True).clamp_min(1) / max(size.sequences, 1)
    if loss_type == "bnpo":
        return counted / max(size.own_tokens, 1) / size.processes
    if loss_type == "dr_grpo":
        return counted / (size.completions * size.max_completion_length)
    return counted / max(size.tokens, 1)


def entropy_threshold(entropy: Tensor, top_entropy_quantile: float) -> float:
    """Return the entropy from which on a token is among the share of highest entropy.

    Args:
        entropy: Entropy of each token that counts in the whole batch, (T,), in nats.
        top_entropy_quantile: The share. 0 leaves the highest value, 1 the lowest.
    """
    return float(torch.quantile(entropy.float(), 1 - top_entropy_quantile)) if len(entropy) else math.inf


@dataclass(frozen=True)
class GRPOLoss:
    """The loss of a micro-batch, with the quantities that are logged."""

    loss: Tensor  # (), with gradient
    kl: Tensor  # (B, C), 0 without a reference policy and for tokens that do not count
    clipped_low: Tensor  # (B, C) bool: the ratio is below the range, and the advantage negative
    clipped_high: Tensor  # (B, C) bool: the ratio is above the range, and the advantage positive

    @property
    def clipped(self) -> Tensor:
        """Whether the ratio is outside the range on the side that the advantage favours, (B, C) bool."""
        return self.clipped_low | self.clipped_high


def grpo_loss(
    logps: Tensor,
    old_logps: Tensor,
    ref_logps: Tensor | None,
    advantage: Tensor,
    token_weights: Tensor,
    objective: GRPOObjective,
    selected: Tensor | None = None,
) -> GRPOLoss:
    """Return the clipped surrogate plus beta times the KL divergence, to be minimised.

    Each token contributes, with ratio = exp(logps - old_logps):

        -min(ratio * A, clip(ratio, 1 - epsilon, 1 + epsilon_high) * A) + beta * KL

    (Schulman et al. 2017, equation 7; Shao et al. 2024, equation 3). `cispo` clips the ratio alone, from above and
    without a gradient, so that every token keeps one (MiniMax-M1, arXiv 2506.13585; ScaleRL, arXiv 2510.13786):

        -min(ratio, epsilon_high) * A * logps + beta * KL

    With `use_bias_correction_kl`, KL is multiplied by the ratio, including its gradient, because the tokens were drawn
    from the old policy. Only then is the gradient of a k3 estimate equal to the gradient of the KL divergence
    (DeepSeek-V3.2, arXiv 2512.02556).

    Args:
        logps: Log-probabilities under the policy, (B, C), with gradient.
        old_logps: Log-probabilities under the policy that sampled, (B, C).
        ref_logps: Log-probabilities under the reference policy, (B, C); None if beta is 0.
        advantage: Advantage of each completion, (B,).
        token_weights: Weight of each token from `loss_weights`, (B, C). Tokens of weight 0 have no effect.
        objective: The settings.
        selected: Tokens that the surrogate acts on, (B, C) bool; None: all. The KL term acts on all.
    """
    counts = token_weights > 0
    logps, old_logps = torch.where(counts, logps, 0.0), torch.where(counts, old_logps, 0.0)
    ratio = (logps - old_logps).exp()
    a, largest = advantage[:, None], objective.largest_ratio
    if objective.loss_type == "cispo":
        per_token = -ratio.clamp(max=largest).detach() * a * logps
        low = torch.zeros_like(counts)
    else:
        clipped_ratio = ratio.clamp(1 - objective.epsilon, largest)
        per_token = -torch.min(ratio * a, clipped_ratio * a)
        low = (ratio < 1 - objective.epsilon) & (a < 0)
    if selected is not None:
        per_token = per_token * selected
    kl = torch.zeros_like(logps)
    if ref_logps is not None:
        kl = kl_divergence(logps, torch.where(counts, ref_logps, 0.0), objective.kl)
        per_token = per_token + objective.beta * kl * (ratio if objective.use_bias_correction_kl else 1)
    high = (ratio > largest) & (a > 0)
    return GRPOLoss((per_token * token_weights).sum(), kl.detach(), low & counts, high & counts)


def entropy_bonus(entropy: Tensor, acting: Tensor, tokens: int) -> Tensor:
    """Return a micro-batch's part of the mean entropy of the tokens, (), with gradient, in nats.

    `entropy_coef` times the sum of the parts is subtracted from the loss. As in TRL it is a mean over tokens with every
    `loss_type`.

    Args:
        entropy: Entropy of each token's distribution, (B, C), with gradient.
        acting: Tokens that count, and that `top_entropy_quantile` does not leave out, (B, C) bool.
        tokens: Number of such tokens in the whole batch.
    """
    return torch.where(acting, entropy, 0.0).sum() / max(tokens, 1)
