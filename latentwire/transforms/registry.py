"""The repairs by name: embeddings that a frozen LM cannot read -> embeddings that it can.

Each is an nn.Module with (T, D) -> (T, D) or (B, T, D) -> (B, T, D), any float dtype in and the same out, and
gradients wherever the mathematics has any. Rows of a batch never influence one another (random draws differ from
row to row). "Nearest" is by cosine.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from latentwire.harness.errors import UserError
from latentwire.lm.vocabulary import Vocabulary, rms
from latentwire.transforms.auto import Auto
from latentwire.transforms.base import EMBEDDINGS, PAIRS, Transform, check_dials, require
from latentwire.transforms.fitted import MomentMatching, Procrustes, ProcrustesSupervised, Whitening

NEAREST_TEMPERATURE = 0.1  # of nearest_k's softmax over cosines; at 1 the k tokens would weigh nearly the same


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

    kappa: Tensor

    def __init__(self, vocabulary: Vocabulary, *, codebook_size: int, tau: float) -> None:
        super().__init__(vocabulary)
        require(
            1 <= codebook_size <= vocabulary.size, "codebook_size", codebook_size,
            f"must be between 1 and the vocabulary's {vocabulary.size} tokens",
        )  # fmt: skip
        require(tau > 0 and math.isfinite(tau), "tau", tau, "is a temperature, above 0")
        codes, kappa = vocabulary.codes(codebook_size)
        self.codes = nn.Parameter(codes)  # (codebook_size, D)
        self.register_buffer("kappa", torch.tensor(kappa, device=codes.device))  # goes with the codes it was fitted to
        self.tau = tau

    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """softmax((kappa cos(x, codes) + noise in training) / tau) codes."""
        codes = self.codes.to(x)
        logits = self.kappa.to(x) * (normalize(x, dim=-1) @ normalize(codes, dim=-1).T)  # (..., codebook_size)
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


class Chain(Transform):
    """Other transforms one after the other, each fitted, if at all, on what those before it make of the source.

    `steps` are the names of configurations, joined by +: rms_scale1.0+anchor_eps0.05.
    """

    def __init__(self, vocabulary: Vocabulary, *, steps: str) -> None:
        super().__init__(vocabulary)
        self.names = steps.split("+")
        self.parts = [build_transform(*read_label(name), vocabulary) for name in self.names]
        self.modules_of_parts = nn.ModuleList(self.parts)  # so that .to() reaches them
        wanted = {step.fits for step in self.parts}
        self.fits = PAIRS if PAIRS in wanted else EMBEDDINGS if EMBEDDINGS in wanted else ""

    def fit(self, x: Tensor, truth: Tensor | None, generator: torch.Generator) -> None:
        """Fit the steps in their order."""
        for name, step in zip(self.names, self.parts, strict=True):
            if step.fits:
                step.fit(x, truth if step.fits == PAIRS else None, generator)
                self.diagnosis[name] = step.diagnosis
            x = step(x, generator)

    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """last(... second(first(x)))."""
        for step in self.parts:
            x = step(x, generator)
        return x


LABELS = {  # how a configuration is called, as conf/embed_transform has it
    "baseline": "baseline",
    "rms_matching": "rms_scale{target_scale}",
    "batch_distribution": "batch_distribution",
    "nearest_k": "nearest_k{k}_a{alpha}",
    "anchor_offset": "anchor_eps{eps}",
    "soft_codebook": "codebook{codebook_size}_tau{tau}",
    "soft_vocab": "soft_vocab_tau{tau}",
    "random_interpolation": "random_k{k}",
    "moment_matching": "moment_matching",
    "whitening": "whitening",
    "procrustes": "procrustes",
    "procrustes_supervised": "procrustes_supervised",
    "auto": "auto",
}
WHOLE = {"k", "codebook_size"}  # dials that are whole numbers


def read_label(label: str) -> tuple[str, dict[str, Any]]:
    """Return the family and the dials of a configuration's name: anchor_eps0.05 -> anchor_offset, eps 0.05.

    Raises:
        UserError: No configuration is called so.
    """
    for family, pattern in LABELS.items():
        found = re.fullmatch(re.sub(r"{(\w+)}", r"(?P<\1>[-+.\\de]+)", pattern), label)
        if found is None:
            continue
        try:
            dials = {dial: (int if dial in WHOLE else float)(value) for dial, value in found.groupdict().items()}
        except ValueError:
            continue
        if (written := pattern.format(**dials)) != label:
            raise UserError(f"steps=...{label}...: write it as it is called, {written}")
        return family, dials
    examples = "rms_scale1.0+anchor_eps0.05"
    raise UserError(
        f"steps=...{label}...: no configuration is called so; join names as task=list sweep=embed_plus prints them, "
        f"such as {examples}"
    )


TRANSFORMS: dict[str, type[Transform]] = {
    "baseline": Baseline,
    "rms_matching": RMSMatching,
    "batch_distribution": BatchDistribution,
    "nearest_k": NearestK,
    "anchor_offset": AnchorOffset,
    "soft_codebook": SoftCodebook,
    "soft_vocab": SoftVocab,
    "random_interpolation": RandomInterpolation,
    "chain": Chain,
    "moment_matching": MomentMatching,
    "whitening": Whitening,
    "procrustes": Procrustes,
    "procrustes_supervised": ProcrustesSupervised,
    "auto": Auto,
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
