"""Conversations -> token ids, the same for the policy, the reward model and whatever samples from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kat.data.prompts import render_conversation


def encode_prompt(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Return the ids of a conversation up to where the answer begins.

    The tokenizer's chat template with its generation prompt; where it has none, the conversation as plain text and
    a line that opens the answer.

    Args:
        tokenizer: A tokenizer of transformers.
        messages: Each with a role and a content.
    """
    if getattr(tokenizer, "chat_template", None):
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return list(tokenizer(f"{render_conversation(messages)}\n\nassistant: ")["input_ids"])


def encode_completion(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of an answer, with the end of sequence at its end."""
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def completion_text(messages: Sequence[Mapping[str, str]]) -> str:
    """Return a chosen or rejected completion as text: its messages' contents, a blank line between."""
    return "\n\n".join(message["content"] for message in messages)
