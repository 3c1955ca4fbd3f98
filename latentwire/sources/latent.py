"""The source latent: a trained encoder stands in for the passage."""

from __future__ import annotations

import torch
from torch import Tensor

from latentwire.encoders.base import make_passages
from latentwire.encoders.checkpoint import load_latents
from latentwire.encoders.cost import BYTES_PER_NUMBER
from latentwire.lm.vocabulary import Vocabulary
from latentwire.sources.base import Source


class Latent(Source):
    """What a trained encoder makes of the passage, after the transform it was trained with.

    Args:
        checkpoint: Folder of the encoder, or of the run that trained it. For which LM it was trained is checked by who
            knows that LM (`latents.about_latents`).
    """

    passage_only = True

    def __init__(self, vocabulary: Vocabulary, generator: torch.Generator, *, checkpoint: str) -> None:
        super().__init__(vocabulary, generator)
        self.latents = load_latents(checkpoint, vocabulary)

    def replace(self, x: Tensor, generator: torch.Generator, passage: str) -> Tensor:
        """Encode the passage: from its tokens or its text, as the encoder wants."""
        ids = None
        if self.latents.encoder.reads_ids:  # x are real tokens, each the nearest to itself but for twins
            ids = [self.vocabulary.nearest(x, 1).flatten().tolist()]
        latents: Tensor = self.latents(make_passages([passage], [x], ids))[0]
        return latents

    def positions(self, tokens: int) -> int:
        """As many as the encoder makes."""
        return self.latents.encoder.positions(tokens)

    def size(self, tokens: int) -> int:
        """Of z in float16: the adapter stands on the LM's side."""
        return BYTES_PER_NUMBER * self.positions(tokens) * self.latents.encoder.z_width
