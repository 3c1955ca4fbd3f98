"""Transforms of lengths and moments: `Baseline`, `RMSMatching` and `BatchDistribution`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentwire.lm.vocabulary import Vocabulary, rms
from latentwire.transforms.base import Transform, register_transform, require


@register_transform("baseline", label="baseline")
class Baseline(Transform):
    """Leaves the embeddings unchanged."""

    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return x."""
        return x


@register_transform("rms_matching", label="rms_scale{target_scale}")
class RMSMatching(Transform):
    """Scales each token to target_scale times the vocabulary's mean RMS, and keeps its direction."""

    def __init__(self, vocabulary: Vocabulary, *, target_scale: float) -> None:
        super().__init__(vocabulary)
        require(target_scale > 0 and math.isfinite(target_scale), "target_scale", target_scale, "must be above 0")
        self.target_rms = target_scale * float(vocabulary.mean_rms)

    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return x * target / rms(x); a zero vector stays zero."""
        return x * (self.target_rms / rms(x))[..., None]


@register_transform("batch_distribution", label="batch_distribution")
class BatchDistribution(Transform):
    """Sets mean and standard deviation of each dimension to the vocabulary's.

    The statistics are over the T tokens of one example, never over the batch, so they do not depend on batch size or
    padding. A constant dimension gets the vocabulary's mean; with T = 1 every dimension is constant.
    """

    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return (x - mean_T(x)) / std_T(x) * vocabulary std + vocabulary mean."""
        centred = x - x.mean(dim=-2, keepdim=True)
        variance = centred.square().mean(dim=-2, keepdim=True)
        # Variance up to the rounding error of the values counts as 0.
        floor = (8 * torch.finfo(x.dtype).eps * x.detach().abs().amax(dim=-2, keepdim=True)).square()
        tiny = torch.finfo(x.dtype).tiny
        gain = torch.where(variance > floor, variance.clamp_min(tiny).rsqrt(), torch.zeros_like(variance))
        return centred * gain * self.vocabulary.std.to(x) + self.vocabulary.mean.to(x)
