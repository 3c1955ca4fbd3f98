"""Evaluation on held-out prompts during training. Main entries: `answer()` and `evaluate_policy()`.

Every evaluation uses the same prompts and random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from kat.grpo.data import TokenPrompt
from kat.grpo.objective import kl_divergence
from kat.grpo.policy import Policy, PolicyRow, micro_batches
from kat.grpo.rewards import Rewards, Sampled
from kat.grpo.rollout import Completion, Sampling, sample
from latentwire.harness.gather import gather_from_all
from latentwire.stats.comparison import compare_paired
from latentwire.stats.intervals import resampled_means

Answered = list[dict[str, Any]]  # one entry a prompt: id, prompt, and its completions with their rewards


def as_sampled(tokenizer: Any, prompt: TokenPrompt, completion: Completion) -> Sampled:
    """Return a completion with the texts and ids that rewards take."""
    text = str(tokenizer.decode(completion.ids, skip_special_tokens=True))
    return Sampled(prompt.text, prompt.ids, text, completion.ids)


@torch.no_grad()
def divergences(policy: Policy, rows: Sequence[PolicyRow], estimator: str, batch_tokens: int) -> list[float]:
    """Return the KL divergence of the policy from the reference policy, summed over each completion, B values in nats.

    Args:
        policy: The policy, with a reference policy.
        rows: Prompts with completions sampled from the current policy.
        estimator: One of KL_ESTIMATORS, see `kat.grpo.objective.kl_divergence`.
        batch_tokens: Maximum number of positions computed at a time.
    """
    found = [0.0] * len(rows)
    for batch in micro_batches(rows, batch_tokens):
        part = [rows[i] for i in batch]
        values = kl_divergence(policy.logps(part), policy.ref_logps(part), estimator).double()  # (B, C)
        for i, row, each in zip(batch, part, values, strict=True):
            found[i] = float(each[: len(row.completion.ids)].sum())
    return found


def answer(
    policy: Policy,
    tokenizer: Any,
    prompts: Sequence[TokenPrompt],
    rewards: Rewards,
    sampling: Sampling,
    estimator: str,
    *,
    seed: int,
    ends: frozenset[int],
    state: PartialState,
    doing: str,
) -> Answered:
    """Sample completions of held-out prompts, reward them, and compute the KL divergence from the reference policy.

    The random numbers of a completion depend on the seed and the prompt's id alone. Two evaluations are thus paired
    draw by draw. The processes share the prompts.

    Args:
        policy: The policy.
        tokenizer: The policy's tokenizer.
        prompts: The held-out prompts.
        rewards: The rewards.
        sampling: Settings of the sampling.
        estimator: Estimator of the KL divergence, one of KL_ESTIMATORS.
        seed: Seed of the draws.
        ends: Ids that end a completion.
        state: The processes.
        doing: What the run is doing, for messages.

    Returns:
        An entry for each prompt, in order, the same in every process. With a reference policy its completions have a
        `kl`, in nats, summed over their tokens.
    """
    own = list(range(len(prompts)))[state.process_index :: state.num_processes]
    keys = [("held-out", prompts[i].id) for i in own]
    prompt_ids = [prompts[i].ids for i in own]
    hook = policy.hidden_state_hook
    groups = sample(policy.model, prompt_ids, keys, sampling, seed=seed, ends=ends, hidden_state_hook=hook)
    flat = [as_sampled(tokenizer, prompts[i], c) for i, group in zip(own, groups, strict=True) for c in group]
    totals = rewards(flat, doing)[0].tolist() if flat else []
    kls: list[dict[str, float]] = [{} for _ in flat]
    if policy.ref_parameters is not None:
        sampled = [PolicyRow(ids, c) for ids, group in zip(prompt_ids, groups, strict=True) for c in group]
        kls = [{"kl": nats} for nats in divergences(policy, sampled, estimator, sampling.batch_tokens)]
    rows: list[tuple[int, dict[str, Any]]] = []
    for number, (i, group) in enumerate(zip(own, groups, strict=True)):
        completions = [
            {"text": flat[at].completion, "tokens": len(c.ids), "ended": c.ended, "reward": totals[at], **kls[at]}
            for at, c in enumerate(group, number * sampling.num_generations)
        ]
        rows.append((i, {"id": prompts[i].id, "prompt": prompts[i].text, "completions": completions}))
    return [row for _, row in sorted(gather_from_all(state, rows), key=lambda item: item[0])]


def mean_rewards(answered: Answered) -> list[float]:
    """Return the mean reward of each prompt's completions, N values."""
    return [float(np.mean([c["reward"] for c in row["completions"]])) for row in answered]


def evaluate_policy(answered: Answered, before: Sequence[float], seed: int) -> dict[str, Any]:
    """Return the mean reward and its paired gain since before training, with 95% bootstrap intervals over prompts.

    Args:
        answered: Result of `answer`.
        before: Mean rewards of the same N prompts before training.
        seed: Seed of the resampling.

    Returns:
        reward, gain and their intervals, length (tokens), truncated (share), and the numbers of prompts and
        completions. With a reference policy also kl, the mean divergence from it in nats a token.
    """
    now = np.array(mean_rewards(answered))
    low, high = np.quantile(resampled_means(now[None], seed)[0], [0.025, 0.975])
    gain = compare_paired(now[None], np.asarray(before, dtype=np.float64), seed)[0]
    completions = [c for row in answered for c in row["completions"]]
    tokens = sum(c["tokens"] for c in completions)
    divergence = {"kl": sum(c["kl"] for c in completions) / tokens} if "kl" in completions[0] else {}
    return {
        "reward": float(now.mean()),
        "reward_interval": [float(low), float(high)],
        "gain": gain.difference,
        "gain_interval": list(gain.interval),
        **divergence,
        "length": float(np.mean([c["tokens"] for c in completions])),
        "truncated": float(np.mean([not c["ended"] for c in completions])),
        "prompts": len(answered),
        "completions": len(completions),
    }
