"""The base class of all sources, which is also the source `text`. Main entry: `Source`."""

from __future__ import annotations

import torch
from torch import Tensor

from latentwire.encoders.cost import BYTES_PER_NUMBER
from latentwire.lm.vocabulary import Vocabulary


class Source:
    """Leaves real token embeddings unchanged; subclasses distort or replace them.

    Args:
        vocabulary: The token embeddings of the LM.
        generator: CPU generator of the draws that all examples share.
    """

    passage_only = False  # True: replaces only the passage, with any number of positions

    def __init__(self, vocabulary: Vocabulary, generator: torch.Generator) -> None:
        self.vocabulary = vocabulary

    def __call__(self, x: Tensor, generator: torch.Generator, passage: str = "") -> Tensor:
        """Distort or replace the embeddings of one example.

        Args:
            x: Embeddings of passage and question, or of the passage if `passage_only`, (T, D).
            generator: CPU generator of this example's draws.
            passage: The passage as text.

        Returns:
            Embeddings (T, D), or (L, D) with L >= 0 if `passage_only`, in the dtype and on the device of x.
        """
        x32 = x.to(torch.promote_types(x.dtype, torch.float32))
        return self.replace(x32, generator, passage).to(x.dtype)

    def replace(self, x: Tensor, generator: torch.Generator, passage: str) -> Tensor:
        """Distort or replace x, float32 or float64; a source that needs the passage as text overrides this method."""
        return self.distort(x, generator)

    def positions(self, tokens: int) -> int:
        """Return the number of positions for a span of `tokens` tokens."""
        return tokens

    def size(self, tokens: int) -> int:
        """Return the number of bytes to transmit for a span of `tokens` tokens, in float16."""
        return BYTES_PER_NUMBER * self.positions(tokens) * self.vocabulary.width

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return x distorted; x is float32 or float64, (T, D)."""
        return x
