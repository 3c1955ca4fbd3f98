"""Slight changes of prompts that keep their meaning. Main entries: `paraphrase()`, `write_paraphrases()`."""

from __future__ import annotations

from pathlib import Path

import torch

from kat.data.prompts import prompt_id, read_prompts
from latentwire.harness.results import write_jsonl

KINDS = ("case", "punctuation", "please")
SAMPLED = 100  # prompts that are changed


def paraphrase(text: str, kind: str) -> str:
    """Return a prompt with other capitals, with or without its last mark, or with a polite beginning."""
    if kind == "case":
        return text.lower() if text.lower() != text else text[:1].upper() + text[1:]
    if kind == "punctuation":
        return text[:-1] if text[-1] in "?.!" else f"{text}?"
    return f"please tell me: {text}"


def paraphrase_id(text: str, kind: str) -> str:
    """Return the id of a changed prompt in a file of prompts."""
    return prompt_id([{"role": "user", "content": paraphrase(text, kind)}])


def sampled_texts(prompts: Path) -> dict[str, str]:
    """Return the texts of 100 random prompts of a file by id."""
    texts = {prompt.id: prompt.text for prompt in read_prompts(prompts)}
    names = sorted(texts)
    chosen = torch.randperm(len(names), generator=torch.Generator().manual_seed(0))[:SAMPLED]
    return {names[row]: texts[names[row]] for row in chosen.tolist()}


def write_paraphrases(prompts: Path, out: Path) -> None:
    """Write a prompts file with the changes of 100 random prompts, for task=embed."""
    texts = sampled_texts(prompts).values()
    rows = [{"prompt": paraphrase(text, kind)} for text in texts for kind in KINDS]
    write_jsonl(out, [row for i, row in enumerate(rows) if row not in rows[:i]])
