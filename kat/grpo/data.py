"""What GRPO trains on: prompts as tokens, those held out, and the weights by which the others are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kat.data.chat import encode_prompt
from kat.data.heldout import held_out
from kat.data.prompts import Prompt
from kat.sampling.arms import prompt_weights
from latentwire.harness.errors import UserError


@dataclass(frozen=True)
class TokenPrompt:
    """A prompt and its tokens."""

    id: str
    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class GrpoData:
    """The prompts of a run."""

    train: list[TokenPrompt]
    held_out: list[TokenPrompt]  # never trained on
    too_long: list[str]  # ids of prompts that leave no room for a completion; in neither


def encode_prompts(prompts: Sequence[Prompt], tokenizer: Any, context: int, new_tokens: int, share: float,
                   whose: str = "policy") -> GrpoData:  # fmt: skip
    """Encode prompts and set apart those that are held out; what does not fit into the context is in neither.

    Fitting means the prompt, a whole completion, and the end token that the reward model reads after one cut off.

    Args:
        prompts: All there are.
        tokenizer: Of the policy.
        context: Positions that the policy and the reward model can both read.
        new_tokens: Tokens of a completion, at most.
        share: Of the prompts that are held out; by their ids alone, so the same in every arm and for every seed.
        whose: Of the two models, the one with that context; for the message.

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
                TokenPrompt(prompt.id, prompt.text, ids)
            )
    if not data.train and not data.held_out:
        raise UserError(
            f"none of the {len(prompts)} prompts leaves room for {new_tokens} new tokens in the {whose}'s context of "
            f"{context}; lower grpo.max_completion_length, or use a {whose} with a longer context"
        )
    return data


def draw_weights(
    data: GrpoData, arm: str, measured: dict[str, float], unread: Sequence[str], prompts_per_step: int, seed: int
) -> tuple[Tensor, int]:
    """Return the weight of each training prompt, (N,) float64 of sum 1, and how many can never be drawn.

    Args:
        data: The prompts.
        arm: uniform | density | reversed | shuffled, made among the training prompts.
        measured: Weights of task=density by prompt id; not looked at where the arm is uniform.
        unread: Ids of prompts that the embedder could not read.
        prompts_per_step: Prompts of a batch.
        seed: Of the shuffling.

    Raises:
        UserError: Fewer prompts than a batch has.
    """
    without = len(set(unread) & {prompt.id for prompt in data.train}) if arm != "uniform" else 0
    if len(data.train) - without < prompts_per_step:
        raise UserError(
            f"grpo.prompts_per_step={prompts_per_step}: there are {len(data.train) - without} prompts to train on "
            f"({len(data.held_out)} are held out, {len(data.too_long)} too long); use more data or fewer prompts a step"
        )
    return prompt_weights([prompt.id for prompt in data.train], arm, measured, unread, seed)


def evaluation_prompts(data: GrpoData, count: int) -> list[TokenPrompt]:
    """Return `count` of the held-out prompts, the same ones in every run: the first by id, which is a hash.

    Raises:
        UserError: None is held out.
    """
    if count and not data.held_out:
        raise UserError("held_out: holds out none of these prompts, so nothing can be evaluated; hold out a larger "
                        "share, or set grpo.eval_prompts=0")  # fmt: skip
    return sorted(data.held_out, key=lambda prompt: prompt.id)[:count]
