"""Training with shots whose passages are latents, too, as in ARC-Encoder (arXiv 2510.20535).

Main entry: `CompressedShotsObjective`.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from latentwire.data.examples import Example
from latentwire.encoders.pipeline import at_ratio
from latentwire.latent_training.objective import LatentObjective
from latentwire.latent_training.passages import Passage
from latentwire.lm.decoding import Prefix, encode_prefix_embeds
from latentwire.lm.shots import shots_embeds


class CompressedShotsObjective(LatentObjective):
    """Computes the losses of passages after shots whose passages are latents of the encoder's current weights.

    `encode_shots` comes before the losses of each step of kind `answers`. No gradient goes through the shots. The LM
    that reads the text, to which losses compare, has the shots as text. Arguments are as in `LatentObjective`.
    """

    compresses_shots = True

    def encode_shots(self, ratio: int | None) -> None:
        """Encode the shots with the current weights, at the ratio of the step."""
        with at_ratio(self.latents.encoder, ratio):
            self.question_reader = self.teacher_reader.after(self.shots_prefix(self.shots))

    @torch.no_grad()
    def shots_prefix(self, shots: list[list[Example]]) -> Prefix:
        """Return the keys and values of the shots with the latents of their passages."""
        pieces = self.writer.shot_pieces(shots)
        texts = [piece.passage for piece in pieces if piece.passage is not None]
        latents: list[Tensor] = self.latents(self.embed_texts(texts))
        return encode_prefix_embeds(self.lm, shots_embeds(self.lm, pieces, latents))

    def shots_positions(self) -> int:
        """Return the number of positions of the shots, with latents at the encoder's present ratio."""
        positions = self.latents.encoder.positions
        return sum(tokens if passage is None else positions(tokens) for tokens, passage in self._lengths)

    @cached_property
    def _lengths(self) -> list[tuple[int, str | None]]:
        """Number of tokens of each piece of the shots, and its passage."""
        return [(len(piece.token_ids), piece.passage) for piece in self.writer.shot_pieces(self.shots)]

    def losses(
        self, kind: str, passages: list[Passage], generator: torch.Generator, ratio: int | None = None
    ) -> dict[str, Tensor]:
        """Return the sum of each loss over the passages; arguments as in `LatentObjective.losses`.

        Raises:
            RuntimeError: `encode_shots` was not called before.
        """
        if kind == "answers" and self.question_reader is self.teacher_reader:
            raise RuntimeError("encode_shots() comes before the losses of a step of kind answers")
        return super().losses(kind, passages, generator, ratio)
