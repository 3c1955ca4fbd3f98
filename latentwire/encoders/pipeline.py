"""Encoder, adapter and transform as one module: from a passage to what the LM reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from latentwire.encoders.base import Adapter, Passages
from latentwire.encoders.registry import build_encoder
from latentwire.harness.errors import UserError
from latentwire.lm.vocabulary import Vocabulary, rms
from latentwire.transforms.base import Transform
from latentwire.transforms.registry import Chain, build_transform
from latentwire.transforms.tokens import AnchorOffset, RandomInterpolation


@dataclass
class LatentSpec:
    """What a latent encoder is: everything that is needed to build it again."""

    encoder: str
    encoder_dials: dict[str, Any]
    adapter_hidden: int
    transform: str
    transform_dials: dict[str, Any]
    lm: dict[str, Any]  # identity of the LM that it speaks to
    lm_name: str
    lm_config: dict[str, Any] = field(default_factory=dict)  # what LMLayers is built after


class Latents(nn.Module):
    """Passages -> what the LM reads in their place, (L_i, D) each.

    Args:
        spec: What to build.
        vocabulary: Of the LM.

    Raises:
        UserError: A dial out of range, or a transform that nothing can be trained through.
    """

    def __init__(self, spec: LatentSpec, vocabulary: Vocabulary) -> None:
        super().__init__()
        unit = float(vocabulary.mean_rms)
        self.spec, self.unit = spec, unit
        self.encoder = build_encoder(spec.encoder, spec.encoder_dials, vocabulary.width, unit, spec.lm_config)
        self.adapter = Adapter(self.encoder.z_width, vocabulary.width, spec.adapter_hidden)
        self.transform = build_transform(spec.transform, spec.transform_dials, vocabulary)
        steps = self.transform.parts if isinstance(self.transform, Chain) else [self.transform]
        if any(isinstance(step, RandomInterpolation) for step in steps):
            raise UserError(
                f"embed_transform={spec.transform}: its result does not hang on the encoder, so nothing can be trained "
                "through it; choose another transform"
            )
        if self.transform.fits:
            raise UserError(
                f"embed_transform={spec.transform}: is fitted to a finished source, this one is in training; "
                "choose another transform, or fit it to the trained encoder with run.py embed_source=latent"
            )
        # Its result is chosen, not computed: the mathematical gradient is nearly nothing.
        self.chooses = any(isinstance(step, AnchorOffset) for step in steps)

    def forward(self, passages: Passages, generator: torch.Generator | None = None) -> list[Tensor]:
        """Encode passages.

        Args:
            passages: A batch.
            generator: Of the transform's noise in training; None in evaluation.

        Returns:
            (L_i, D) each, float32. The transform sees each passage by itself.
        """
        adapted = self.adapter(self.encoder(passages))  # (B, L, D)
        counts = [self.encoder.positions(tokens) for tokens in passages.lengths]
        return [self.repair(rows[:n], generator) for rows, n in zip(adapted, counts, strict=True)]

    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Put one passage through the transform, or through its estimator: (L, D) -> (L, D)."""
        if self.chooses:
            return straight_through(self.transform, x, self.unit, generator)
        repaired: Tensor = self.transform(x, generator)
        return repaired


def straight_through(transform: Transform, x: Tensor, unit: float, generator: torch.Generator | None) -> Tensor:
    """Straight-through estimator (Bengio et al. 2013, arXiv 1308.3432): the transform's value, another's gradient.

    The gradient is that of x at the tokens' mean RMS. A plain identity would be wrong by the factor between the lengths
    of what comes in and what goes out, about a hundred after a LayerNorm.

    Args:
        transform: Whose value.
        x: (L, D).
        unit: Mean RMS of the token embeddings.
        generator: Of the transform's noise.
    """
    carrier = x * (unit / rms(x))[..., None]
    repaired = transform(x, generator)
    return repaired.detach() + (carrier - carrier.detach())
