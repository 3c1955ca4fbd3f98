"""The source `latent`: the output of a trained encoder in place of the passage. Main entry: `Latent`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from latentwire.encoders.base import make_passages
from latentwire.encoders.checkpoint import about_latents, load_latents
from latentwire.encoders.cost import BYTES_PER_NUMBER
from latentwire.encoders.pipeline import set_ratio
from latentwire.lm.vocabulary import Vocabulary
from latentwire.sources.base import Source, register_source
from latentwire.sources.distortions import require_factor


@register_source("latent", label="latent", unlabelled=("checkpoint", "factor", "ratio"))
class Latent(Source):
    """Replaces the passage by a trained encoder's output, after the transform that the encoder was trained with.

    Args:
        vocabulary: The token embeddings of the LM.
        generator: Unused.
        checkpoint: Folder of the encoder, or of the run that trained it. The caller checks that the encoder was trained
            for this LM (`encoders.checkpoint.about_latents`).
        factor: Number by which the latents are multiplied.
        ratio: Number of tokens for each latent; None: as in the encoder's training.

    Raises:
        UserError: The checkpoint does not exist, is damaged, or fits an LM of another width. Or `factor` or
            `ratio` is out of range.
    """

    passage_only = True
    unchanged: ClassVar[Mapping[str, object]] = {"factor": 1.0, "ratio": None}

    def __init__(
        self,
        vocabulary: Vocabulary,
        generator: torch.Generator,
        *,
        checkpoint: str,
        factor: float,
        ratio: int | None = None,
    ) -> None:
        super().__init__(vocabulary, generator)
        self.factor = require_factor(factor)
        self.latents = load_latents(checkpoint, vocabulary)
        if ratio is not None:
            set_ratio(self.latents.encoder, ratio)

    @classmethod
    def encoder_folder(cls, dials: Mapping[str, object]) -> str | None:
        """Return the folder of the encoder."""
        return str(dials["checkpoint"])

    @classmethod
    def replaces_shots(cls, dials: Mapping[str, object]) -> bool:
        """Return whether the shots' passages were latents in the encoder's training."""
        return about_latents(dials["checkpoint"]).get("compressed_shots", False)

    def replace(self, x: Tensor, generator: torch.Generator, passage: str) -> Tensor:
        """Return factor times the latents of the passage, (L, D); the encoder uses embeddings, token ids or text."""
        ids = None
        if self.latents.encoder.reads_ids:  # x holds real tokens, so the nearest token is the token itself
            ids = [self.vocabulary.nearest(x, 1).flatten().tolist()]
        latents: Tensor = self.latents(make_passages([passage], [x], ids))[0]
        return self.factor * latents

    def positions(self, tokens: int) -> int:
        """Return the number of latents that the encoder makes of `tokens` tokens."""
        return self.latents.encoder.positions(tokens)

    def token_positions(self, tokens: int) -> slice:
        """Return the positions that stand for tokens; markers and style vectors do not."""
        return self.latents.encoder.token_positions(tokens)

    def size(self, tokens: int) -> int:
        """Return the number of bytes of z in float16; the adapter runs on the LM's side."""
        return BYTES_PER_NUMBER * self.positions(tokens) * self.latents.encoder.z_width
