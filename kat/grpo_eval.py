"""The reward of held-out prompts while a policy is trained: the same prompts and random numbers at every look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from accelerate import PartialState

from kat.grpo_data import TokenPrompt
from kat.rewards import Rewards, Sampled
from kat.rollout import Completion, Sampling, sample
from latentwire.harness.device import gather_from_all
from latentwire.metrics import compare_paired, resampled_means

Answered = list[dict[str, Any]]  # a prompt each: id, prompt, and its completions with their rewards


def described(tokenizer: Any, prompt: TokenPrompt, completion: Completion) -> Sampled:
    """Return a completion as what a reward looks at."""
    text = str(tokenizer.decode(completion.ids, skip_special_tokens=True))
    return Sampled(prompt.text, prompt.ids, text, completion.ids)


def answer(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[TokenPrompt],
    rewards: Rewards,
    sampling: Sampling,
    *,
    seed: int,
    ends: frozenset[int],
    state: PartialState,
    doing: str,
) -> Answered:
    """Sample completions of held-out prompts and reward them; the processes share the prompts.

    The random numbers of a completion depend on the seed and the prompt's id alone, so that two looks at a policy are
    paired draw by draw.

    Returns:
        A row for each prompt, in their order, the same in every process.
    """
    mine = list(range(len(prompts)))[state.process_index :: state.num_processes]
    keys = [("held-out", prompts[i].id) for i in mine]
    groups = sample(model, [prompts[i].ids for i in mine], keys, sampling, seed=seed, ends=ends)
    flat = [described(tokenizer, prompts[i], c) for i, group in zip(mine, groups, strict=True) for c in group]
    found = rewards(flat, doing)[0].tolist() if flat else []
    rows: list[tuple[int, dict[str, Any]]] = []
    for place, (i, group) in enumerate(zip(mine, groups, strict=True)):
        completions = [
            {"text": flat[at].completion, "tokens": len(c.ids), "ended": c.ended, "reward": found[at]}
            for at, c in enumerate(group, place * sampling.num_generations)
        ]
        rows.append((i, {"id": prompts[i].id, "prompt": prompts[i].text, "completions": completions}))
    return [row for _, row in sorted(gather_from_all(state, rows), key=lambda item: item[0])]


def mean_rewards(answered: Answered) -> list[float]:
    """Return the mean reward of each prompt's completions, (N,)."""
    return [float(np.mean([c["reward"] for c in row["completions"]])) for row in answered]


def judge(answered: Answered, before: Sequence[float], seed: int) -> dict[str, Any]:
    """Return the mean reward with its 95% interval (bootstrap over prompts), and its difference from before, paired.

    Args:
        answered: What `answer` returned.
        before: Mean rewards of the same prompts before training, (N,).
        seed: Of the resampling.
    """
    now = np.array(mean_rewards(answered))
    low, high = np.quantile(resampled_means(now[None], seed)[0], [0.025, 0.975])
    gain = compare_paired(now[None], np.asarray(before, dtype=np.float64), seed)[0]
    completions = [c for row in answered for c in row["completions"]]
    return {
        "reward": float(now.mean()),
        "reward_interval": [float(low), float(high)],
        "gain": gain.difference,
        "gain_interval": list(gain.interval),
        "length": float(np.mean([c["tokens"] for c in completions])),
        "truncated": float(np.mean([not c["ended"] for c in completions])),
        "prompts": len(answered),
        "completions": len(completions),
    }
