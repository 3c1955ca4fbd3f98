"""Scores of a reward model on held-out pairs. Main entry: `score_pairs()`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import PreTrainedModel

from kat.reward.data import RewardPair
from kat.reward.scoring import score
from latentwire.harness.gather import gather_from_all
from latentwire.harness.optimization import require_finite_loss
from latentwire.harness.progress import Progress

AT_A_TIME = 32  # prompts between two updates of the progress bar


def score_pairs(
    model: PreTrainedModel, pairs: Sequence[RewardPair], batch_tokens: int, state: PartialState
) -> tuple[list[float], Tensor]:
    """Score pairs; the processes share the prompts.

    Args:
        model: The reward model.
        pairs: Held-out pairs.
        batch_tokens: Maximum number of positions computed at a time.
        state: The processes.

    Returns:
        The margin of each pair, and the rewards of all their completions, (2 * pairs,) float64.

    Raises:
        NonFiniteError: A reward is NaN or infinite.
    """
    by_prompt: dict[str, list[int]] = {}
    for index, pair in enumerate(pairs):
        by_prompt.setdefault(pair.prompt_id, []).append(index)
    prompts = list(by_prompt.values())[state.process_index :: state.num_processes]
    found: list[tuple[int, list[float]]] = []
    with Progress("held-out pairs", sum(map(len, prompts))) as progress:
        for start in range(0, len(prompts), AT_A_TIME):
            part = [index for indices in prompts[start : start + AT_A_TIME] for index in indices]
            trees = [pairs[index].tree for index in part]
            values = score(model, [(t.prompt, c) for t in trees for c in t.completions], batch_tokens)
            found += zip(part, values.view(-1, 2).tolist(), strict=True)
            progress.advance(len(part), "")
    scores = dict(gather_from_all(state, found))
    rewards = torch.tensor([scores[index] for index in range(len(pairs))], dtype=torch.float64)  # (pairs, 2)
    require_finite_loss("a reward", rewards, "the held-out pairs")
    return [float(margin) for margin in rewards[:, 0] - rewards[:, 1]], rewards.flatten()
