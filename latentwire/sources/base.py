"""The base of all sources, and the source text: real token embeddings as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from latentwire.encoders.cost import BYTES_PER_NUMBER
from latentwire.lm.vocabulary import Vocabulary


class Source:
    """Real token embeddings as they are."""

    passage_only = False  # True: stands for the passage alone, in as many positions as it likes

    def __init__(self, vocabulary: Vocabulary, generator: torch.Generator) -> None:
        self.vocabulary = vocabulary

    def __call__(self, x: Tensor, generator: torch.Generator, passage: str = "") -> Tensor:
        """Distort the embeddings of one example, keeping dtype and device.

        Args:
            x: The source span's embeddings, (T, D); with `passage_only` the passage's.
            generator: Of what differs between examples.
            passage: The passage as text.

        Returns:
            (T, D), or with `passage_only` (L, D), L from 0 on.
        """
        x32 = x.to(torch.promote_types(x.dtype, torch.float32))
        return self.replace(x32, generator, passage).to(x.dtype)

    def replace(self, x: Tensor, generator: torch.Generator, passage: str) -> Tensor:
        """Distort x, which is float32 or float64; a source that reads the text itself does so here."""
        return self.distort(x, generator)

    def positions(self, tokens: int) -> int:
        """Return in how many positions so many tokens result."""
        return tokens

    def size(self, tokens: int) -> int:
        """Return how many bytes stand for so many tokens on the way: embeddings in float16."""
        return BYTES_PER_NUMBER * self.positions(tokens) * self.vocabulary.width

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """x, in float32 or float64."""
        return x
