"""Evaluation on held-out prompts during training. Main entries: `HeldOutPrompts.answer()` and `evaluate_policy()`.

Every evaluation uses the same prompts and random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from kat.grpo.actor import Actor
from kat.grpo.data import TokenPrompt
from kat.grpo.objective import kl_divergence
from kat.grpo.policy import Policy, PolicyRow, micro_batches
from kat.grpo.rollout import Sampling
from kat.records import AnsweredCompletion, AnsweredPrompt, PolicyEvaluation
from latentwire.harness.gather import gather_from_all
from latentwire.stats.clusters import SampledClusters
from latentwire.stats.comparison import paired_differences
from latentwire.stats.seeds import interval_over_clusters


@torch.no_grad()
def divergences(policy: Policy, rows: Sequence[PolicyRow], estimator: str, batch_tokens: int) -> list[float]:
    """Return the KL divergence of the policy from the policy before training, summed over each completion.

    The policy's log-probabilities were recorded while sampling. In mixed precision they are computed again, because
    the rounding of sampling differs and would count as a divergence (5e-4 nats a token with SmolLM2).

    Args:
        policy: The policy, with a reference policy.
        rows: Prompts with completions sampled from the current policy, at its temperature.
        estimator: One of KL_ESTIMATORS, see `kat.grpo.objective.kl_divergence`.
        batch_tokens: Maximum number of positions computed at a time.

    Returns:
        B values in nats.
    """
    found = [0.0] * len(rows)
    mixed = torch.is_autocast_enabled(policy.model.device.type)
    for batch in micro_batches(rows, batch_tokens):
        part = [rows[i] for i in batch]
        recorded = pad_sequence([row.completion.logps for row in part], batch_first=True)
        logps = policy.logps(part) if mixed else recorded
        values = kl_divergence(logps, policy.start_logps(part), estimator).double()  # (B, C)
        for i, row, each in zip(batch, part, values, strict=True):
            found[i] = float(each[: len(row.completion.ids)].sum())
    return found


@dataclass(frozen=True)
class HeldOutPrompts:
    """Held-out prompts that a policy answers, always with the same random numbers."""

    actor: Actor
    prompts: Sequence[TokenPrompt]
    sampling: Sampling
    estimator: str  # of the KL divergence, one of KL_ESTIMATORS

    def answer(self, doing: str) -> list[AnsweredPrompt]:
        """Sample and reward completions, and compute the KL divergence from the policy before training.

        The random numbers of a completion depend on the seed and the prompt's id alone. Two evaluations are thus
        paired draw by draw. The processes share the prompts.

        Args:
            doing: What the run is doing, for messages.

        Returns:
            An entry for each prompt, in order, the same in every process.
        """
        actor, state, each = self.actor, self.actor.state, self.sampling.num_generations
        own = list(range(len(self.prompts)))[state.process_index :: state.num_processes]
        prompts = [self.prompts[i] for i in own]
        rows = actor.complete(prompts, [("held-out", prompt.id) for prompt in prompts], self.sampling)
        sampled = actor.sampled(prompts, rows)
        total, by_name = actor.reward(sampled, doing) if sampled else (torch.empty(0), {})
        totals = total.tolist()
        completions: list[AnsweredCompletion] = [
            {"text": one.completion, "tokens": len(row.completion.ids), "ended": row.completion.ended, "reward": total}
            for one, row, total in zip(sampled, rows, totals, strict=True)
        ]
        if len(by_name) > 1:
            for i, completion in enumerate(completions):
                values = {name: float(each[i]) for name, each in by_name.items()}
                completion["rewards"] = {name: None if math.isnan(x) else x for name, x in values.items()}
        if actor.policy.ref_parameters is not None:
            with actor.accelerator.autocast():
                kls = divergences(actor.policy, rows, self.estimator, self.sampling.batch_tokens)
            for completion, nats in zip(completions, kls, strict=True):
                completion["kl"] = nats
        answered: list[tuple[int, AnsweredPrompt]] = [
            (i, {"id": prompt.id, "prompt": prompt.text, "completions": completions[n * each : (n + 1) * each]})
            for n, (i, prompt) in enumerate(zip(own, prompts, strict=True))
        ]
        return [row for _, row in sorted(gather_from_all(state, answered), key=lambda item: item[0])]


def mean_rewards(answered: Sequence[AnsweredPrompt]) -> list[float]:
    """Return the mean reward of each prompt's completions, N values."""
    return [float(np.mean([c["reward"] for c in row["completions"]])) for row in answered]


def evaluate_policy(answered: Sequence[AnsweredPrompt], before: Sequence[float], seed: int) -> PolicyEvaluation:
    """Return the mean reward and its paired gain since before training, with 95% intervals over prompts.

    The reward has Student's interval with half of the observed skewness corrected, the gain the interval of random
    flips of signs.

    Args:
        answered: Result of `HeldOutPrompts.answer`.
        before: Mean rewards of the same N prompts before training.
        seed: Seed of the flips.

    Returns:
        reward, gain and their intervals, length (tokens), truncated (share), and the numbers of prompts and
        completions. With several rewards also rewards, the mean of each over the completions that it scores. With a
        reference policy also kl, the mean divergence from the policy before training in nats a token.
    """
    now = np.array(mean_rewards(answered))
    (gain,) = paired_differences(now[None], np.asarray(before, dtype=np.float64), seed)
    completions = [c for row in answered for c in row["completions"]]
    tokens = sum(c["tokens"] for c in completions)
    found: PolicyEvaluation = {
        "reward": float(now.mean()),
        "reward_interval": list(interval_over_clusters(now, SampledClusters.single(len(now)))),
        "gain": gain.difference,
        "gain_interval": list(gain.interval),
        "length": float(np.mean([c["tokens"] for c in completions])),
        "truncated": float(np.mean([not c["ended"] for c in completions])),
        "prompts": len(answered),
        "completions": len(completions),
    }
    if "rewards" in completions[0]:
        found["rewards"] = {
            name: _mean([c["rewards"][name] for c in completions]) for name in completions[0]["rewards"]
        }
    if "kl" in completions[0]:
        found["kl"] = sum(c["kl"] for c in completions) / tokens
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values without None; None without values."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
