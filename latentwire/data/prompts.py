"""Few-shot completion prompts as token ids, with the source span marked. Main entry: `PromptWriter`.

    Context: <passage>\nQuestion: <question>\nAnswer: <answer>\nQuestion: ...\nAnswer: ...\n\n   (each shot)
    Context: [passage]\nQuestion: [question]\nAnswer:       (the example; [...] is the source span)

The shots are the same tokens for every example, so the examples share their key/value cache. Several questions per
passage show a small model that the answer depends on the question. With one question it tends to copy from the shots.

The source span stands for the output of an encoder. Sources and transforms change only the source span.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from latentwire.data.examples import Example

FORMAT = 2  # version of the prompts, part of every config hash; raise it when a prompt changes


@dataclass(frozen=True)
class FewShotPrompt:
    """The prompt of an example as tokens, without the shots."""

    example: Example
    token_ids: torch.Tensor  # (T,) int64
    source_mask: torch.Tensor  # (T,) bool, true on the source span
    passage_mask: torch.Tensor  # (T,) bool, true on the passage, which begins the source span
    passage: bool = True  # whether the prompt includes the passage
    given: torch.Tensor | None = None  # (T,) token ids that source and transform get instead; None: the prompt's own


class PromptWriter:
    """Writes prompts as token ids of one tokenizer.

    The pieces of a prompt are tokenized separately, so the tokens of the source span do not depend on their context.

    Args:
        tokenizer: Tokenizer of the language model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a piece of text, without special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def shots(self, passages: list[list[Example]]) -> torch.Tensor:
        """Return the token ids of the shots, (P,) int64. They begin with BOS if the tokenizer adds it to texts.

        Args:
            passages: Examples of each shot. The examples of one shot share their passage.
        """
        beginning = list(self.tokenizer("")["input_ids"])
        ids = [i for i in beginning if i == self.tokenizer.bos_token_id][:1]
        for examples in passages:
            ids += self.ids("Context:") + self.ids(f" {examples[0].context}")
            for example in examples:
                ids += self.asked(example) + self.ids(f" {example.answers[0]}")
            ids += self.ids("\n\n")
        return torch.tensor(ids, dtype=torch.int64)

    def asked(self, example: Example) -> list[int]:
        """Return the token ids of a question in a prompt, up to the beginning of the answer."""
        return [*self.ids("\nQuestion:"), *self.ids(f" {example.question}"), *self.ids("\nAnswer:")]

    def prompt(self, example: Example, passage: bool = True) -> FewShotPrompt:
        """Return the prompt of an example, without the shots.

        Args:
            example: Passage and question.
            passage: Whether the prompt includes the passage.
        """
        ids: list[int] = []
        source_mask: list[bool] = []
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
            source_mask += [is_source] * len(tokens)
            passage_mask += [is_passage] * len(tokens)
        return FewShotPrompt(example, torch.tensor(ids), torch.tensor(source_mask), torch.tensor(passage_mask), passage)

    def spans(self, examples: list[Example], positions: int, questions: bool = True) -> list[torch.Tensor]:
        """Return the token ids of the passages and questions of examples, each distinct text once.

        Args:
            examples: Examples in the order of the spans.
            positions: Largest total number of tokens. The list ends before the first span that exceeds it.
            questions: Whether to include the questions.

        Returns:
            Token ids of each text, (T,) int64.
        """
        pieces = [(example.context, example.question) if questions else (example.context,) for example in examples]
        texts = dict.fromkeys(text for piece in pieces for text in piece)
        spans: list[torch.Tensor] = []
        remaining = positions
        for text in texts:
            ids = self.ids(f" {text}")
            if len(ids) > remaining:
                break
            spans.append(torch.tensor(ids, dtype=torch.int64))
            remaining -= len(ids)
        return spans
