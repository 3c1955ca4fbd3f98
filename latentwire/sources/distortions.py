"""Known distortions of token embeddings: scale, noise, shift, rotation, mixing, gains and rank; one class each."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentwire.analysis.ladder import Ladder
from latentwire.lm.vocabulary import Vocabulary, rms
from latentwire.sources.base import Source, register_source
from latentwire.transforms.base import require

MOST_SPREAD = 5.0  # exp(5 z) already spans ten decimal orders of magnitude
SPREAD_RANGE = f"is the standard deviation of a log-normal factor's logarithm, between 0 and {MOST_SPREAD:g}"


def require_factor(factor: float) -> float:
    """Return a factor of embeddings.

    Raises:
        UserError: float32 cannot hold squares of embeddings that are multiplied by it.
    """
    require(1e-10 <= factor <= 1e10, "factor", factor, "must be between 1e-10 and 1e10: float32 must hold squares")
    return factor


@register_source(
    "noisy",
    label="noisy{snr_db}dB",
    ladders=(Ladder("snr_db", "dB", "linear", rising=False, clean=None),),  # decibels are logarithmic
)
class Noisy(Source):
    """Adds white Gaussian noise to each token, snr_db decibels below the token's own power."""

    def __init__(self, vocabulary: Vocabulary, generator: torch.Generator, *, snr_db: float) -> None:
        super().__init__(vocabulary, generator)
        require(math.isfinite(snr_db), "snr_db", snr_db, "must be a finite number of decibels")
        self.relative_rms = 10 ** (-snr_db / 20)

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return x + rms(x) 10^(-snr_db / 20) z, with z standard normal."""
        noise = torch.randn(x.shape, generator=generator).to(x)
        return x + self.relative_rms * rms(x)[..., None] * noise


@register_source(
    "scaled",
    label="scaled{factor}",
    ladders=(
        Ladder("factor", "x", "log", rising=True, clean=1.0, label="scaled up"),
        Ladder("factor", "x", "log", rising=False, clean=1.0, label="scaled down"),
    ),
)
class Scaled(Source):
    """Multiplies every embedding by factor.

    An adapter that ends in a LayerNorm returns embeddings of RMS 1. How much too long these are depends on the model:
    7.5 times for SmolLM2 (mean token RMS .133), about 117 times for a model with a mean token RMS of .0084.
    """

    def __init__(self, vocabulary: Vocabulary, generator: torch.Generator, *, factor: float) -> None:
        super().__init__(vocabulary, generator)
        self.factor = require_factor(factor)

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return factor x."""
        return self.factor * x


@register_source("scaled_passage", label="scaled_passage{factor}")
class ScaledPassage(Scaled):
    """Multiplies the embeddings of the passage by factor; the question stays as it is, as after latents."""

    passage_only = True


@register_source(
    "shifted",
    label="shifted{offset}",
    ladders=(Ladder("offset", "norms", "linear", rising=True, clean=0.0),),
)
class Shifted(Source):
    """Adds one vector to every token: of random direction, offset mean token norms long."""

    def __init__(self, vocabulary: Vocabulary, generator: torch.Generator, *, offset: float) -> None:
        super().__init__(vocabulary, generator)
        require(offset >= 0 and math.isfinite(offset), "offset", offset, "must be 0 or more mean token norms")
        direction = torch.randn(vocabulary.width, generator=generator)
        self.shift: Tensor = offset * vocabulary.mean_norm.cpu() * direction / direction.norm()  # (D,)

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return x + shift."""
        return x + self.shift.to(x)


@register_source("rotated", label="rotated")
class Rotated(Source):
    """Multiplies every token by the same random orthogonal matrix; lengths and angles stay."""

    def __init__(self, vocabulary: Vocabulary, generator: torch.Generator) -> None:
        super().__init__(vocabulary, generator)
        gaussian = torch.randn(vocabulary.width, vocabulary.width, generator=generator, dtype=torch.float64)
        q, r = torch.linalg.qr(gaussian)
        # Signs that make R's diagonal positive make Q uniform over the orthogonal group (Mezzadri 2007).
        self.rotation: Tensor = (q * r.diagonal().sign()).float()  # (D, D)

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return Q x, row by row."""
        return x @ self.rotation.to(x)


@register_source(
    "mixed",
    label="mixed{rate}",
    ladders=(Ladder("rate", "share", "linear", rising=True, clean=0.0),),
)
class Mixed(Source):
    """Mixes each token with a random one, which has the share rate."""

    def __init__(self, vocabulary: Vocabulary, generator: torch.Generator, *, rate: float) -> None:
        super().__init__(vocabulary, generator)
        require(0 <= rate <= 1, "rate", rate, "is the share of the random token, between 0 and 1")
        self.rate = rate

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return (1 - rate) x + rate e, with e the embedding of a random token."""
        ids = torch.randint(self.vocabulary.size, x.shape[:-1], generator=generator)
        others = self.vocabulary.embeddings[ids.to(self.vocabulary.embeddings.device)].to(x)
        return (1 - self.rate) * x + self.rate * others


@register_source(
    "token_scale",
    label="token_scale{spread}",
    ladders=(Ladder("spread", "log sd", "linear", rising=True, clean=0.0),),
)
class TokenScale(Source):
    """Multiplies each token by its own random factor; directions stay."""

    def __init__(self, vocabulary: Vocabulary, generator: torch.Generator, *, spread: float) -> None:
        super().__init__(vocabulary, generator)
        require(0 <= spread <= MOST_SPREAD, "spread", spread, SPREAD_RANGE)
        self.spread = spread

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return exp(spread z) x, with z standard normal, one for each token."""
        z = torch.randn(*x.shape[:-1], 1, generator=generator).to(x)
        return (self.spread * z).exp() * x


@register_source(
    "anisotropic",
    label="anisotropic{spread}",
    ladders=(Ladder("spread", "log sd", "linear", rising=True, clean=0.0),),
)
class Anisotropic(Source):
    """Multiplies each dimension by its own random gain, the same for every token."""

    def __init__(self, vocabulary: Vocabulary, generator: torch.Generator, *, spread: float) -> None:
        super().__init__(vocabulary, generator)
        require(0 <= spread <= MOST_SPREAD, "spread", spread, SPREAD_RANGE)
        self.gain = (spread * torch.randn(vocabulary.width, generator=generator)).exp()  # (D,)

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return x * gain, dimension by dimension, with gain = exp(spread z)."""
        return x * self.gain.to(x)


@register_source(
    "low_rank",
    label="low_rank{rank}",
    ladders=(Ladder("rank", "components", "log", rising=False, clean=None),),
)
class LowRank(Source):
    """Projects tokens to the first `rank` principal components, then applies a LayerNorm: an adapter with a bottleneck.

    The principal components are of the token embeddings. The LayerNorm has neither gain nor bias, so every token gets
    RMS 1. That is 7.5 times the mean RMS of SmolLM2's tokens (.133).
    """

    def __init__(self, vocabulary: Vocabulary, generator: torch.Generator, *, rank: int) -> None:
        super().__init__(vocabulary, generator)
        require(1 <= rank <= vocabulary.width, "rank", rank, f"must be between 1 and the width, {vocabulary.width}")
        self.components = vocabulary.principal_axes[:, :rank]  # (D, rank)

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return LayerNorm(mean + P P' (x - mean)), with P the first components, (D, rank)."""
        components, mean = self.components.to(x), self.vocabulary.mean.to(x)
        projected = mean + (x - mean) @ components @ components.T
        centred = projected - projected.mean(dim=-1, keepdim=True)
        # Not torch's layer_norm, whose eps can be as large as a token's variance.
        return centred / rms(centred)[..., None]
