"""Encoder, adapter and transform as one module, from passages to the LM's inputs. Main entry: `Latents`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from latentwire.encoders.base import Adapter, Encoder, LMFacts, Passages
from latentwire.encoders.registry import build_encoder
from latentwire.harness.errors import UserError
from latentwire.harness.results import JsonObject
from latentwire.lm.vocabulary import Vocabulary, rms
from latentwire.transforms.base import Transform
from latentwire.transforms.registry import build_transform


@dataclass
class LatentSpec:
    """All settings needed to rebuild a latent encoder."""

    encoder: str
    encoder_dials: JsonObject
    adapter_hidden: int
    transform: str
    transform_dials: JsonObject
    lm: JsonObject  # identity of the LM that gets the latents
    lm_name: str
    lm_config: JsonObject = field(default_factory=dict)  # config of that LM, for encoders that need it
    adapter_scale: str = "norm"  # one of base.SCALES


class Latents(nn.Module):
    """Maps passages to the embeddings that replace them in the LM's input, (L_i, D) each.

    Args:
        spec: Settings of encoder, adapter and transform.
        vocabulary: The token embeddings of the LM.

    Raises:
        UserError: A dial is out of range, or no encoder can be trained through the transform.
    """

    def __init__(self, spec: LatentSpec, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.training_dtype = torch.float32  # of matrix products in training; weights stay float32
        mean_token_rms = float(vocabulary.mean_rms)
        self.spec, self.mean_token_rms = spec, mean_token_rms
        lm = LMFacts(vocabulary.width, mean_token_rms, spec.lm_config, vocabulary.lm_dtype)
        self.encoder = build_encoder(spec.encoder, spec.encoder_dials, lm)
        self.adapter: nn.Module = (
            nn.Identity()
            if self.encoder.embeds_directly
            else Adapter(self.encoder.z_width, lm, spec.adapter_hidden, spec.adapter_scale)
        )
        self.transform = build_transform(spec.transform, spec.transform_dials, vocabulary)
        if self.transform.gradient == "none":
            raise UserError(
                f"embed_transform={spec.transform}: its result does not depend on the encoder, so an encoder cannot be "
                "trained through it; choose another transform"
            )
        if self.transform.fits:
            raise UserError(
                f"embed_transform={spec.transform}: is fitted to a finished source, but this encoder is in training; "
                "choose another transform, or fit it to the trained encoder with run.py embed_source=latent"
            )

    def forward(self, passages: Passages, generator: torch.Generator | None = None) -> list[Tensor]:
        """Encode passages.

        Args:
            passages: A batch.
            generator: CPU generator of the transform's noise in training; None in evaluation.

        Returns:
            Embeddings of each passage, (L_i, D) float32. The transform gets each passage separately.

        Raises:
            UserError: The encoder returns another shape than (B, L, Z).
        """
        counts = [self.encoder.positions(tokens) for tokens in passages.lengths]
        with self._in_training_dtype(passages.embeds.device):
            z = self.encoder(passages)
        wanted = (len(counts), max(counts), self.encoder.z_width)
        if not isinstance(z, Tensor) or z.ndim != 3 or (len(z), z.shape[2]) != wanted[::2] or z.shape[1] < wanted[1]:
            shape = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise UserError(
                f"encoder={self.spec.encoder}: forward returned {shape}, expected {wanted}: passages, positions, "
                "z_width; correct forward, positions or z_width"
            )
        with self._in_training_dtype(passages.embeds.device):
            adapted = self.adapter(z).float()  # (B, L, D)
        return [self.repair(rows[:n], generator) for rows, n in zip(adapted, counts, strict=True)]

    def _in_training_dtype(self, device: torch.device) -> torch.autocast:
        """Return a context in which training computes matrix products in `training_dtype`."""
        lower = self.training and self.training_dtype != torch.float32
        return torch.autocast(device.type, self.training_dtype if lower else None, enabled=lower)

    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return one passage after the transform, with its own or the straight-through gradient: (L, D) -> (L, D)."""
        if self.transform.gradient == "straight_through":
            return straight_through(self.transform, x, self.mean_token_rms, generator)
        repaired: Tensor = self.transform(x, generator)
        return repaired


@contextlib.contextmanager
def at_ratio(encoder: Encoder, ratio: int | None) -> Iterator[None]:
    """Encode with another number of tokens for each latent while the context lasts; None changes nothing.

    Raises:
        UserError: The encoder has one ratio only, or cannot have this one.
    """
    if ratio is None:
        yield
        return
    usual = encoder.ratio if encoder.any_ratio else 1
    set_ratio(encoder, ratio)
    try:
        yield
    finally:
        encoder.ratio = usual


def set_ratio(encoder: Encoder, ratio: int) -> None:
    """Encode with another number of tokens for each latent from now on.

    Raises:
        UserError: The encoder has one ratio only, or the ratio is below 1.
    """
    if not encoder.any_ratio:
        raise UserError(f"ratio={ratio}: {type(encoder).__name__} has no ratio that can change; leave it out")
    encoder.ratio = require_ratio(ratio)


def require_ratio(ratio: object) -> int:
    """Return a ratio, a whole number of at least 1.

    Raises:
        UserError: It is something else.
    """
    if not isinstance(ratio, int) or isinstance(ratio, bool) or ratio < 1:
        raise UserError(f"ratio={ratio}: must be a whole number of tokens for each position, at least 1")
    return ratio


def straight_through(
    transform: Transform, x: Tensor, mean_token_rms: float, generator: torch.Generator | None
) -> Tensor:
    """Return the transform's value with the gradient of x scaled to the tokens' mean RMS.

    This is a straight-through estimator (Bengio et al. 2013, arXiv 1308.3432). The identity's gradient would be wrong
    by the ratio of the lengths of input and output: 7.5 after a LayerNorm, for SmolLM2.

    Args:
        transform: The transform.
        x: Embeddings, (L, D).
        mean_token_rms: Mean RMS of the token embeddings.
        generator: CPU generator of the transform's noise, or None.

    Returns:
        Embeddings, (L, D).
    """
    carrier = x * (mean_token_rms / rms(x))[..., None]
    repaired: Tensor = transform(x, generator)
    return repaired.detach() + (carrier - carrier.detach())
