"""Token ids of conversations, equal for the policy, the reward model and sampling. Main entry: `encode_prompt()`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kat.data.prompts import render_conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


PLACE = "{prompt}"  # stands for the content of the last message in a prompt template


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], template: str | None = None
) -> list[int]:
    """Return the token ids of a conversation, up to the beginning of the answer.

    The tokenizer's chat template is used with its generation prompt. A tokenizer without a template gets the
    conversation as plain text and a line that opens the answer.

    Args:
        tokenizer: A tokenizer of transformers.
        messages: The messages, each with a role and a content.
        template: Text that replaces the content of the last message, with that content in place of {prompt}; None
            keeps the content.
    """
    if template is not None:
        *before, last = messages
        messages = [*before, {**last, "content": template.replace(PLACE, last["content"])}]
    if getattr(tokenizer, "chat_template", None):
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
        )
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return list(tokenizer(f"{render_conversation(messages)}\n\nassistant: ")["input_ids"])


def encode_completion(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of an answer, followed by the end-of-sequence token."""
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def completion_text(messages: Sequence[Mapping[str, str]]) -> str:
    """Return a completion as text: the contents of its messages, separated by blank lines."""
    return "\n\n".join(message["content"] for message in messages)
