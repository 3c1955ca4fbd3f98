"""Transforms towards tokens: `NearestK`, `AnchorOffset`, `SoftVocab`, and the control `RandomInterpolation`."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from latentwire.lm.vocabulary import Vocabulary
from latentwire.transforms.base import (
    Transform,
    register_transform,
    require,
    require_temperature,
    require_within_vocabulary,
)

NEAREST_TEMPERATURE = 0.1  # temperature of nearest_k's softmax; at 1 the k weights would be nearly equal


@register_transform("nearest_k", label="nearest_k{k}_a{alpha}")
class NearestK(Transform):
    """Mixes alpha of the original with 1 - alpha of a convex combination of the k nearest tokens.

    The tokens' weights are a softmax of the cosines at a fixed temperature of 0.1.
    """

    def __init__(self, vocabulary: Vocabulary, *, k: int, alpha: float) -> None:
        super().__init__(vocabulary)
        require_within_vocabulary("k", k, vocabulary)
        require(0 <= alpha <= 1, "alpha", alpha, "is the share of the original embedding, between 0 and 1")
        self.k, self.alpha = k, alpha

    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return alpha x + (1 - alpha) sum_i softmax(cos(x, e_i) / 0.1) e_i, over the k nearest tokens e_i."""
        neighbours = self.tokens(self.vocabulary.nearest(x, self.k), x)  # (..., k, D)
        cosines = (normalize(neighbours, dim=-1) @ normalize(x, dim=-1)[..., None]).squeeze(-1)  # (..., k)
        weights = (cosines / NEAREST_TEMPERATURE).softmax(dim=-1)
        return self.alpha * x + (1 - self.alpha) * (weights[..., None] * neighbours).sum(dim=-2)


@register_transform("anchor_offset", label="anchor_eps{eps}")
class AnchorOffset(Transform):
    """Adds to the nearest token (the anchor) the residual, clipped to eps times the anchor's norm.

    Real tokens stay unchanged, unless two of them point in exactly the same direction.
    """

    gradient = "straight_through"

    def __init__(self, vocabulary: Vocabulary, *, eps: float) -> None:
        super().__init__(vocabulary)
        require(eps >= 0 and math.isfinite(eps), "eps", eps, "must be 0 (the anchor alone) or more")
        self.eps = eps

    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return a + r min(1, eps |a| / |r|), with a the nearest token and r = x - a."""
        anchor = self.tokens(self.vocabulary.nearest(x, 1).squeeze(-1), x)
        residual = x - anchor
        limit = self.eps * anchor.norm(dim=-1, keepdim=True)
        # The norm has no gradient at zero, so it is computed only for residuals that are clipped.
        squared = residual.square().sum(dim=-1, keepdim=True)
        clipped = squared > limit.square()
        length = torch.where(clipped, squared, torch.ones_like(squared)).sqrt()
        return anchor + residual * torch.where(clipped, limit / length, torch.ones_like(squared))


@register_transform("soft_vocab", label="soft_vocab_tau{tau}")
class SoftVocab(Transform):
    """Returns a convex combination of all tokens: softmax of the cosines at temperature tau."""

    def __init__(self, vocabulary: Vocabulary, *, tau: float) -> None:
        super().__init__(vocabulary)
        require_temperature(tau)
        self.tau = tau

    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return softmax(cos(x, E) / tau) E, with E all token embeddings, (V, D)."""
        embeddings = self.vocabulary.embeddings.to(x)
        cosines = (normalize(x, dim=-1) @ embeddings.T) * self.vocabulary.search.inverse_norms.to(x)  # (..., V)
        return (cosines / self.tau).softmax(dim=-1) @ embeddings


@register_transform("random_interpolation", label="random_k{k}")
class RandomInterpolation(Transform):
    """Negative control: a random convex combination of k random tokens, independent of the input."""

    gradient = "none"

    def __init__(self, vocabulary: Vocabulary, *, k: int) -> None:
        super().__init__(vocabulary)
        require_within_vocabulary("k", k, vocabulary)
        self.k = k

    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return at each position k tokens drawn with replacement, mixed with Dirichlet(1, ..., 1) weights."""
        if generator is None:
            raise ValueError("random_interpolation draws at random: pass a generator")
        shape = (*x.shape[:-1], self.k)
        ids = torch.randint(self.vocabulary.size, shape, generator=generator)
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64).clamp_min(1e-300)
        weights = -torch.log(uniform)
        weights = (weights / weights.sum(dim=-1, keepdim=True)).to(x)
        return (weights[..., None] * self.tokens(ids, x)).sum(dim=-2)
