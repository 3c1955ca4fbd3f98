"""Few-shot completion prompts as token ids, with the source span marked.

    Context: <passage>\nQuestion: <question>\nAnswer: <answer>\nQuestion: ...\nAnswer: ...\n\n   (each shot)
    Context: [passage]\nQuestion: [question]\nAnswer:       (the example; [...] is the source span)

The shots are the same real tokens for every example, so their key/value cache can be shared. Several questions
about one passage show a small model that the answer hangs on the question: with one each it tends to copy from
the shots. Only the source span stands for what an encoder would produce: sources and transforms act on it alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from latentwire.data.examples import Example

FORMAT = 2  # goes into the hash of every result; raise it whenever a prompt changes


@dataclass(frozen=True)
class FewShotPrompt:
    """An example as tokens, without the shots."""

    example: Example
    token_ids: torch.Tensor  # (T,) int64
    source_mask: torch.Tensor  # (T,) bool, true on the source span
    passage_mask: torch.Tensor  # (T,) bool, true on the passage, the beginning of the source span
    passage: bool = True  # whether the passage is in it


class PromptWriter:
    """Writes prompts as token ids of one tokenizer.

    The pieces are tokenized apart, so that the span's tokens are the same ones whatever surrounds them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def ids(self, text: str) -> list[int]:
        """Return the tokens of a piece, without any that begin or end a text."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def shots(self, passages: list[list[Example]]) -> torch.Tensor:
        """Return the shared prefix, begun as the tokenizer begins a text (BOS or nothing): (P,) int64."""
        beginning = list(self.tokenizer("")["input_ids"])
        ids = [i for i in beginning if i == self.tokenizer.bos_token_id][:1]
        for examples in passages:
            ids += self.ids("Context:") + self.ids(f" {examples[0].context}")
            for example in examples:
                ids += self.asked(example) + self.ids(f" {example.answers[0]}")
            ids += self.ids("\n\n")
        return torch.tensor(ids, dtype=torch.int64)

    def asked(self, example: Example) -> list[int]:
        """Return the tokens of a question as it stands in a prompt, up to where the answer begins."""
        return [*self.ids("\nQuestion:"), *self.ids(f" {example.question}"), *self.ids("\nAnswer:")]

    def prompt(self, example: Example, passage: bool = True) -> FewShotPrompt:
        """Return an example's own tokens and which of them are the source span; on request without the passage."""
        ids: list[int] = []
        mask: list[bool] = []
        passage_mask: list[bool] = []
        for text, is_source, is_passage in (
            ("Context:", False, False),
            *([(f" {example.context}", True, True)] if passage else []),
            ("\nQuestion:", False, False),
            (f" {example.question}", True, False),
            ("\nAnswer:", False, False),
        ):
            tokens = self.ids(text)
            ids += tokens
            mask += [is_source] * len(tokens)
            passage_mask += [is_passage] * len(tokens)
        return FewShotPrompt(example, torch.tensor(ids), torch.tensor(mask), torch.tensor(passage_mask), passage)

    def spans(self, examples: list[Example], positions: int, questions: bool = True) -> list[torch.Tensor]:
        """Return what would be source spans of these examples, each passage once: token ids (T,) int64.

        With or without the questions. They end before the span with which they would pass `positions` in all.
        """
        pieces = [(example.context, example.question) if questions else (example.context,) for example in examples]
        texts = dict.fromkeys(text for piece in pieces for text in piece)
        found: list[torch.Tensor] = []
        room = positions
        for text in texts:
            ids = self.ids(f" {text}")
            if len(ids) > room:
                break
            found.append(torch.tensor(ids, dtype=torch.int64))
            room -= len(ids)
        return found
