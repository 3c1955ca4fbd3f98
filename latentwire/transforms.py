"""The repairs: embeddings that a frozen LM cannot read -> embeddings that it can.

Each is an nn.Module with (T, D) -> (T, D) or (B, T, D) -> (B, T, D), any float dtype in and the same out, and
gradients wherever the mathematics has any. Rows of a batch never influence one another (random draws differ from
row to row). "Nearest" is by cosine.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from latentwire.harness.errors import UserError
from latentwire.vocabulary import Vocabulary, rms

NEAREST_TEMPERATURE = 0.1  # of nearest_k's softmax over cosines; at 1 the k tokens would weigh nearly the same


class Transform(nn.Module, ABC):
    """Checks shapes, computes in at least float32, returns the dtype it was given.

    Args:
        vocabulary: The token embeddings to repair towards.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Repair embeddings.

        Args:
            x: Embeddings, (T, D) or (B, T, D).
            generator: CPU generator of whatever the transform draws at random.

        Returns:
            Embeddings of the same shape, dtype and device.
        """
        if x.ndim not in (2, 3) or x.shape[-1] != self.vocabulary.width or not x.is_floating_point():
            raise ValueError(
                f"expected floats of shape (T, {self.vocabulary.width}) or (B, T, {self.vocabulary.width}), "
                f"got {x.dtype} {tuple(x.shape)}"
            )
        return self.repair(x.to(torch.promote_types(x.dtype, torch.float32)), generator).to(x.dtype)

    @abstractmethod
    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Repair embeddings in float32 or float64, (T, D) or (B, T, D)."""

    def tokens(self, ids: Tensor, like: Tensor) -> Tensor:
        """Return the embeddings of token ids in the dtype of `like`: (...) -> (..., D)."""
        return self.vocabulary.embeddings[ids.to(self.vocabulary.embeddings.device)].to(like)


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


class SoftCodebook(Transform):
    """Vector quantization with soft assignment: a mixture of codebook_size learnable codes.

    The codes start as k-means centroids of the token embeddings. The assignment is that of a mixture of von
    Mises-Fisher distributions around the codes' directions, tempered by tau: softmax(kappa cos(x, c) / tau),
    kappa as fitted to the tokens. In training, with a generator, Gumbel noise is added to the logits; in
    evaluation nothing is random.
    """

    def __init__(self, vocabulary: Vocabulary, *, codebook_size: int, tau: float) -> None:
        super().__init__(vocabulary)
        require(
            1 <= codebook_size <= vocabulary.size, "codebook_size", codebook_size,
            f"must be between 1 and the vocabulary's {vocabulary.size} tokens",
        )  # fmt: skip
        require(tau > 0 and math.isfinite(tau), "tau", tau, "is a temperature, above 0")
        codes, self.kappa = vocabulary.codes(codebook_size)
        self.codes = nn.Parameter(codes)  # (codebook_size, D)
        self.tau = tau

    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """softmax((kappa cos(x, codes) + noise in training) / tau) codes."""
        codes = self.codes.to(x)
        logits = self.kappa * (normalize(x, dim=-1) @ normalize(codes, dim=-1).T)  # (..., codebook_size)
        if self.training and generator is not None:
            uniform = torch.rand(logits.shape, generator=generator, dtype=x.dtype).to(x.device)
            tiny = torch.finfo(x.dtype).tiny
            logits = logits - torch.log((-torch.log(uniform.clamp_min(tiny))).clamp_min(tiny))
        return (logits / self.tau).softmax(dim=-1) @ codes


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


TRANSFORMS: dict[str, type[Transform]] = {
    "baseline": Baseline,
    "rms_matching": RMSMatching,
    "batch_distribution": BatchDistribution,
    "nearest_k": NearestK,
    "anchor_offset": AnchorOffset,
    "soft_codebook": SoftCodebook,
    "soft_vocab": SoftVocab,
    "random_interpolation": RandomInterpolation,
}


def build_transform(family: str, dials: dict[str, Any], vocabulary: Vocabulary) -> Transform:
    """Build a transform in evaluation mode, on the vocabulary's device.

    Raises:
        UserError: An unknown family, a dial it does not have or lacks, or a dial out of range.
    """
    if family not in TRANSFORMS:
        raise UserError(f"embed_transform={family}: unknown; use one of {', '.join(TRANSFORMS)}")
    check_dials(family, dials, TRANSFORMS[family])
    return TRANSFORMS[family](vocabulary, **dials).eval()


def check_dials(name: str, dials: dict[str, Any], owner: type) -> None:
    """Compare dials with the keyword-only arguments of the class that takes them.

    Raises:
        UserError: Naming the stray or missing dial and those that exist.
    """
    parameters = inspect.signature(owner).parameters.values()
    wanted = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    known = ", ".join(sorted(wanted)) or "none"
    for dial in sorted(dials.keys() - wanted):
        raise UserError(f"{dial}={dials[dial]}: {name} has no such dial (its dials: {known}); leave it out")
    for dial in sorted(wanted - dials.keys()):
        raise UserError(f"{name} needs {dial} (its dials: {known}); give it a value")


def require(condition: bool, dial: str, value: float, reason: str) -> None:
    """Raise UserError with the dial, its value and the reason unless the condition holds."""
    if not condition:
        raise UserError(f"{dial}={value}: {reason}")
