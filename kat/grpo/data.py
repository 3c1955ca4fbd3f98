"""Prompts of GRPO as tokens, split into training and held-out prompts, with sampling weights.

Main entries: `encode_prompts()` and `draw_weights()`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from kat.data.chat import encode_prompt
from kat.data.heldout import held_out
from kat.data.prompts import Prompt
from kat.sampling.arms import prompt_weights
from latentwire.harness.errors import UserError
from latentwire.harness.results import JsonObject


@dataclass(frozen=True)
class TokenPrompt:
    """A prompt with its token ids."""

    id: str
    text: str
    ids: tuple[int, ...]
    columns: JsonObject = field(default_factory=dict, compare=False)  # what reward functions may take


@dataclass(frozen=True)
class GrpoData:
    """The training prompts and the held-out prompts of a run."""

    train: list[TokenPrompt]
    held_out: list[TokenPrompt]  # never trained on
    too_long: list[str]  # ids of prompts that leave no room for a completion; in neither list


def encode_prompts(prompts: Sequence[Prompt], tokenizer: Any, context: int, new_tokens: int, share: float,
                   whose: str = "policy") -> GrpoData:  # fmt: skip
    """Encode prompts, and split them into training, held-out and too long prompts.

    The context must hold the prompt, a completion of full length, and one end token: the reward model scores a
    truncated completion with an end token appended.

    Args:
        prompts: All prompts.
        tokenizer: The policy's tokenizer.
        context: Context length that the policy and the reward model both support, in tokens.
        new_tokens: Maximum number of tokens of a completion.
        share: Share of the prompts to hold out. Their ids decide, so they are the same for every arm and seed.
        whose: Model that limits the context, for the message: policy or reward model.

    Raises:
        UserError: No prompt leaves room for a completion.
    """
    data = GrpoData([], [], [])
    for prompt in prompts:
        ids = tuple(encode_prompt(tokenizer, prompt.prompt))
        if len(ids) + new_tokens + 1 > context:
            data.too_long.append(prompt.id)
        else:
            (data.held_out if held_out(prompt.id, share) else data.train).append(
                TokenPrompt(prompt.id, prompt.text, ids, prompt.reward_columns())
            )
    if not data.train and not data.held_out:
        raise UserError(
            f"none of the {len(prompts)} prompts leaves room for {new_tokens} new tokens in the {whose}'s context of "
            f"{context}; lower grpo.max_completion_length, or use a {whose} with a longer context"
        )
    return data


def draw_weights(
    data: GrpoData, arm: str, measured: dict[str, float], too_long: Sequence[str], prompts_per_step: int, seed: int
) -> tuple[Tensor, int]:
    """Return the sampling weight of each training prompt, (N,) float64 of sum 1, and how many are never drawn.

    Args:
        data: The prompts.
        arm: uniform | density | reversed | shuffled, applied to the training prompts.
        measured: Weights of task=density by prompt id; ignored by the uniform arm.
        too_long: Ids of prompts that are too long for the embedder; their weight is 0, except in the uniform arm.
        prompts_per_step: Number of prompts in a step.
        seed: Seed of the arm `shuffled`.

    Raises:
        UserError: There are fewer prompts than a step needs.
    """
    never_drawn = len(set(too_long) & {prompt.id for prompt in data.train}) if arm != "uniform" else 0
    if len(data.train) - never_drawn < prompts_per_step:
        raise UserError(
            f"grpo.prompts_per_step={prompts_per_step}: there are {len(data.train) - never_drawn} prompts to train on "
            f"({len(data.held_out)} are held out, {len(data.too_long)} too long); use more data or fewer prompts a step"
        )
    return prompt_weights([prompt.id for prompt in data.train], arm, measured, too_long, seed)


def evaluation_prompts(data: GrpoData, count: int) -> list[TokenPrompt]:
    """Return the first `count` held-out prompts in the order of their ids, the same prompts in every run.

    Raises:
        UserError: No prompt is held out.
    """
    if count and not data.held_out:
        raise UserError("held_out: holds out none of the prompts, so nothing can be evaluated; use a larger "
                        "share, or set grpo.eval_prompts=0")  # fmt: skip
    return sorted(data.held_out, key=lambda prompt: prompt.id)[:count]
