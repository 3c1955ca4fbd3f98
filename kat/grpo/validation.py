"""Reward and KL of held-out prompts while a policy is trained: the same prompts and random numbers at every look."""

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

Answered = list[dict[str, Any]]  # a prompt each: id, prompt, and its completions with their rewards


def described(tokenizer: Any, prompt: TokenPrompt, completion: Completion) -> Sampled:
    """Return a completion as what a reward looks at."""
    text = str(tokenizer.decode(completion.ids, skip_special_tokens=True))
    return Sampled(prompt.text, prompt.ids, text, completion.ids)


@torch.no_grad()
def divergences(policy: Policy, rows: Sequence[PolicyRow], estimator: str, batch_tokens: int) -> list[float]:
    """Return the KL divergence of the policy from its reference over the tokens of each completion, (B,), in nats.

    Args:
        policy: With a reference.
        rows: Prompts with their completions, sampled from the policy as it is.
        estimator: As in `kat.grpo.objective.kl_divergence`; the sum of its values over a completion's tokens is returned.
        batch_tokens: Positions computed at a time.
    """
    found = [0.0] * len(rows)
    for batch in micro_batches(rows, batch_tokens):
        part = [rows[i] for i in batch]
        values = kl_divergence(policy.logps(part), policy.reference_logps(part), estimator).double()  # (B, C)
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
    """Sample completions of held-out prompts, reward them, and measure how far the policy has gone there.

    The random numbers of a completion depend on the seed and the prompt's id alone, so that two looks at a policy are
    paired draw by draw. The processes share the prompts.

    Returns:
        A row for each prompt, in their order, the same in every process. Its completions have a `kl`, in nats over
        all their tokens, where the policy has a reference.
    """
    mine = list(range(len(prompts)))[state.process_index :: state.num_processes]
    keys = [("held-out", prompts[i].id) for i in mine]
    asked = [prompts[i].ids for i in mine]
    groups = sample(policy.model, asked, keys, sampling, seed=seed, ends=ends, tap=policy.tap)
    flat = [described(tokenizer, prompts[i], c) for i, group in zip(mine, groups, strict=True) for c in group]
    found = rewards(flat, doing)[0].tolist() if flat else []
    gone: list[dict[str, float]] = [{} for _ in flat]
    if policy.reference is not None:
        sampled = [PolicyRow(ids, c) for ids, group in zip(asked, groups, strict=True) for c in group]
        gone = [{"kl": nats} for nats in divergences(policy, sampled, estimator, sampling.batch_tokens)]
    rows: list[tuple[int, dict[str, Any]]] = []
    for place, (i, group) in enumerate(zip(mine, groups, strict=True)):
        completions = [
            {"text": flat[at].completion, "tokens": len(c.ids), "ended": c.ended, "reward": found[at], **gone[at]}
            for at, c in enumerate(group, place * sampling.num_generations)
        ]
        rows.append((i, {"id": prompts[i].id, "prompt": prompts[i].text, "completions": completions}))
    return [row for _, row in sorted(gather_from_all(state, rows), key=lambda item: item[0])]


def mean_rewards(answered: Answered) -> list[float]:
    """Return the mean reward of each prompt's completions, (N,)."""
    return [float(np.mean([c["reward"] for c in row["completions"]])) for row in answered]


def evaluate_policy(answered: Answered, before: Sequence[float], seed: int) -> dict[str, Any]:
    """Return the mean reward with its 95% interval (bootstrap over prompts), and its difference from before, paired.

    Where the policy has a reference, `kl` is the divergence from it in nats a token, over all tokens.

    Args:
        answered: What `answer` returned.
        before: Mean rewards of the same prompts before training, (N,).
        seed: Of the resampling.
    """
    now = np.array(mean_rewards(answered))
    low, high = np.quantile(resampled_means(now[None], seed)[0], [0.025, 0.975])
    gain = compare_paired(now[None], np.asarray(before, dtype=np.float64), seed)[0]
    completions = [c for row in answered for c in row["completions"]]
    tokens = sum(c["tokens"] for c in completions)
    moved = {"kl": sum(c["kl"] for c in completions) / tokens} if "kl" in completions[0] else {}
    return {
        "reward": float(now.mean()),
        "reward_interval": [float(low), float(high)],
        "gain": gain.difference,
        "gain_interval": list(gain.interval),
        **moved,
        "length": float(np.mean([c["tokens"] for c in completions])),
        "truncated": float(np.mean([not c["ended"] for c in completions])),
        "prompts": len(answered),
        "completions": len(completions),
    }
