"""Transforms that draw embeddings towards tokens: nearest_k, anchor_offset, soft_vocab, random_interpolation."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from latentwire.lm.vocabulary import Vocabulary
from latentwire.transforms.base import Transform, require

NEAREST_TEMPERATURE = 0.1  # of nearest_k's softmax over cosines; at 1 the k tokens would weigh nearly the same


class NearestK(Transform):
    """alpha parts of the original, 1 - alpha parts of a convex combination of the k nearest tokens.

    The weights are a softmax of the cosines at a fixed temperature of 0.1.
    """

    def __init__(self, vocabulary: Vocabulary, *, k: int, alpha: float) -> None:
        super().__init__(vocabulary)
        require(
            1 <= k <= vocabulary.size,
            "k",
            k,
            f"must be between 1 and the vocabulary's {vocabulary.size} tokens",
        )
        require(0 <= alpha <= 1, "alpha", alpha, "is the share of the original embedding, between 0 and 1")
        self.k, self.alpha = k, alpha

    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """alpha x + (1 - alpha) sum_i softmax(cos(x, e_i) / 0.1) e_i."""
        neighbours = self.tokens(self.vocabulary.nearest(x, self.k), x)  # (..., k, D)
        cosines = (normalize(neighbours, dim=-1) @ normalize(x, dim=-1)[..., None]).squeeze(-1)  # (..., k)
        weights = (cosines / NEAREST_TEMPERATURE).softmax(dim=-1)
        return self.alpha * x + (1 - self.alpha) * (weights[..., None] * neighbours).sum(dim=-2)


class AnchorOffset(Transform):
    """The nearest token plus the residual, clipped to eps times the anchor's norm.

    The identity on real tokens, unless two of them point in exactly the same direction.
    """

    def __init__(self, vocabulary: Vocabulary, *, eps: float) -> None:
        super().__init__(vocabulary)
        require(eps >= 0 and math.isfinite(eps), "eps", eps, "must be 0 (the anchor alone) or more")
        self.eps = eps

    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """a + r min(1, eps |a| / |r|) with a the nearest token and r = x - a."""
        anchor = self.tokens(self.vocabulary.nearest(x, 1).squeeze(-1), x)
        residual = x - anchor
        limit = self.eps * anchor.norm(dim=-1, keepdim=True)
        # The norm's gradient at zero is undefined; where nothing is to be clipped it is not asked for.
        squared = residual.square().sum(dim=-1, keepdim=True)
        clipped = squared > limit.square()
        length = torch.where(clipped, squared, torch.ones_like(squared)).sqrt()
        return anchor + residual * torch.where(clipped, limit / length, torch.ones_like(squared))


class SoftVocab(Transform):
    """A convex combination of the whole vocabulary: softmax of the cosines at temperature tau."""

    def __init__(self, vocabulary: Vocabulary, *, tau: float) -> None:
        super().__init__(vocabulary)
        require(tau > 0 and math.isfinite(tau), "tau", tau, "is a temperature, above 0")
        self.tau = tau

    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """softmax(cos(x, E) / tau) E with E all token embeddings, (V, D)."""
        embeddings = self.vocabulary.embeddings.to(x)
        cosines = (normalize(x, dim=-1) @ embeddings.T) * self.vocabulary.search.inverse_norms.to(x)  # (..., V)
        return (cosines / self.tau).softmax(dim=-1) @ embeddings


class RandomInterpolation(Transform):
    """The negative control: a random convex combination of k random tokens, whatever the input was."""

    def __init__(self, vocabulary: Vocabulary, *, k: int) -> None:
        super().__init__(vocabulary)
        require(
            1 <= k <= vocabulary.size,
            "k",
            k,
            f"must be between 1 and the vocabulary's {vocabulary.size} tokens",
        )
        self.k = k

    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Dirichlet(1, ..., 1) weights over k tokens drawn with replacement, anew at each position."""
        if generator is None:
            raise ValueError("random_interpolation draws at random: pass a generator")
        shape = (*x.shape[:-1], self.k)
        ids = torch.randint(self.vocabulary.size, shape, generator=generator)
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64).clamp_min(1e-300)
        weights = -torch.log(uniform)
        weights = (weights / weights.sum(dim=-1, keepdim=True)).to(x)
        return (weights[..., None] * self.tokens(ids, x)).sum(dim=-2)
