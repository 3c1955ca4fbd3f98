"""Transforms that change lengths and moments only: baseline, rms_matching, batch_distribution."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentwire.lm.vocabulary import Vocabulary, rms
from latentwire.transforms.base import Transform, require


class Baseline(Transform):
    """No repair: the source as it is."""

    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """x."""
        return x


class RMSMatching(Transform):
    """Each token scaled to target_scale times the vocabulary's mean RMS; its direction stays."""

    def __init__(self, vocabulary: Vocabulary, *, target_scale: float) -> None:
        super().__init__(vocabulary)
        require(target_scale > 0 and math.isfinite(target_scale), "target_scale", target_scale, "must be above 0")
        self.target_rms = target_scale * float(vocabulary.mean_rms)

    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """x * target / rms(x), a zero vector staying zero."""
        return x * (self.target_rms / rms(x))[..., None]


class BatchDistribution(Transform):
    """Per dimension, mean and standard deviation matched to the vocabulary's.

    The statistics run over the T tokens of one example, never over the batch, so that neither batch size nor
    padding plays a part. A dimension without spread (T = 1 among them) gets the vocabulary's mean.
    """

    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """(x - mean_T(x)) / std_T(x) * vocabulary std + vocabulary mean."""
        centred = x - x.mean(dim=-2, keepdim=True)
        variance = centred.square().mean(dim=-2, keepdim=True)
        # Relative to the values themselves: rounding noise in a constant dimension is no spread.
        floor = (8 * torch.finfo(x.dtype).eps * x.detach().abs().amax(dim=-2, keepdim=True)).square()
        tiny = torch.finfo(x.dtype).tiny
        gain = torch.where(variance > floor, variance.clamp_min(tiny).rsqrt(), torch.zeros_like(variance))
        return centred * gain * self.vocabulary.std.to(x) + self.vocabulary.mean.to(x)
