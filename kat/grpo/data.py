"""Prompts of GRPO as tokens, split into training and held-out prompts. Main entry: `encode_prompts()`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kat.data.chat import encode_prompt
from kat.data.heldout import held_out
from kat.data.prompts import Prompt
from latentwire.harness.errors import UserError
from latentwire.harness.results import JsonObject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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


def encode_prompts(
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    new_tokens: int,
    share: float,
    whose: str = "policy",
    template: str | None = None,
) -> GrpoData:
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
        template: Text around the last message of each prompt, see `kat.data.chat.encode_prompt`.

    Raises:
        UserError: No prompt leaves room for a completion.
    """
    data = GrpoData([], [], [])
    for prompt in prompts:
        ids = tuple(encode_prompt(tokenizer, prompt.prompt, template))
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


def evaluation_prompts(data: GrpoData, count: int) -> list[TokenPrompt]:
    """Return the first `count` held-out prompts in the order of their ids, the same prompts in every run.

    Raises:
        UserError: No prompt is held out.
    """
    if count and not data.held_out:
        raise UserError("held_out: holds out none of the prompts, so nothing can be evaluated; use a larger "
                        "share, or set grpo.eval_prompts=0")  # fmt: skip
    return sorted(data.held_out, key=lambda prompt: prompt.id)[:count]
