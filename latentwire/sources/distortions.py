"""Known distortions of token embeddings: scale, noise, shift, rotation, mixing, low rank."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentwire.lm.vocabulary import Vocabulary, rms
from latentwire.sources.base import Source
from latentwire.transforms.base import require

MOST_SPREAD = 5.0  # exp(5 z) already spans ten decimal orders of magnitude


SPREAD_RANGE = f"is the standard deviation of a log-normal factor's logarithm, between 0 and {MOST_SPREAD:g}"


class Scaled(Source):
    """Every embedding times factor; an adapter that ends in a LayerNorm is about 117 times too long."""

    def __init__(self, vocabulary: Vocabulary, generator: torch.Generator, *, factor: float) -> None:
        super().__init__(vocabulary, generator)
        require(1e-10 <= factor <= 1e10, "factor", factor, "must be between 1e-10 and 1e10: float32 must hold squares")
        self.factor = factor

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """factor x."""
        return self.factor * x


class Noisy(Source):
    """White Gaussian noise on each token at snr_db decibels below its own power."""

    def __init__(self, vocabulary: Vocabulary, generator: torch.Generator, *, snr_db: float) -> None:
        super().__init__(vocabulary, generator)
        require(math.isfinite(snr_db), "snr_db", snr_db, "must be a finite number of decibels")
        self.relative = 10 ** (-snr_db / 20)

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """x + rms(x) 10^(-snr_db / 20) z with z standard normal."""
        noise = torch.randn(x.shape, generator=generator).to(x)
        return x + self.relative * rms(x)[..., None] * noise


class Shifted(Source):
    """A constant vector added to every token, offset times the mean token norm long, its direction random."""

    def __init__(self, vocabulary: Vocabulary, generator: torch.Generator, *, offset: float) -> None:
        super().__init__(vocabulary, generator)
        require(offset >= 0 and math.isfinite(offset), "offset", offset, "must be 0 or more mean token norms")
        direction = torch.randn(vocabulary.width, generator=generator)
        self.shift = offset * vocabulary.mean_norm.cpu() * direction / direction.norm()  # (D,)

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """x + offset."""
        return x + self.shift.to(x)


class Rotated(Source):
    """Every token turned by the same random orthogonal matrix; lengths and angles stay."""

    def __init__(self, vocabulary: Vocabulary, generator: torch.Generator) -> None:
        super().__init__(vocabulary, generator)
        gaussian = torch.randn(vocabulary.width, vocabulary.width, generator=generator, dtype=torch.float64)
        q, r = torch.linalg.qr(gaussian)
        # With R's diagonal made positive, Q is uniform over the orthogonal group (Mezzadri 2007).
        self.rotation = (q * r.diagonal().sign()).float()  # (D, D)

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Q x, row by row."""
        return x @ self.rotation.to(x)


class Mixed(Source):
    """Each token mixed with a random one: rate parts of that, 1 - rate of its own."""

    def __init__(self, vocabulary: Vocabulary, generator: torch.Generator, *, rate: float) -> None:
        super().__init__(vocabulary, generator)
        require(0 <= rate <= 1, "rate", rate, "is the share of the random token, between 0 and 1")
        self.rate = rate

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(1 - rate) x + rate e with e the embedding of a random token."""
        ids = torch.randint(self.vocabulary.size, x.shape[:-1], generator=generator)
        others = self.vocabulary.embeddings[ids.to(self.vocabulary.embeddings.device)].to(x)
        return (1 - self.rate) * x + self.rate * others


class TokenScale(Source):
    """Each token times a random factor of its own: directions stay, lengths differ from token to token."""

    def __init__(self, vocabulary: Vocabulary, generator: torch.Generator, *, spread: float) -> None:
        super().__init__(vocabulary, generator)
        require(0 <= spread <= MOST_SPREAD, "spread", spread, SPREAD_RANGE)
        self.spread = spread

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """exp(spread z) x with z standard normal, one for each token."""
        z = torch.randn(*x.shape[:-1], 1, generator=generator).to(x)
        return (self.spread * z).exp() * x


class Anisotropic(Source):
    """Each dimension times a random gain of its own, the same ones for every token."""

    def __init__(self, vocabulary: Vocabulary, generator: torch.Generator, *, spread: float) -> None:
        super().__init__(vocabulary, generator)
        require(0 <= spread <= MOST_SPREAD, "spread", spread, SPREAD_RANGE)
        self.gain = (spread * torch.randn(vocabulary.width, generator=generator)).exp()  # (D,)

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """x * gain, dimension by dimension, with gain = exp(spread z)."""
        return x * self.gain.to(x)


class LowRank(Source):
    """What is left of a token in the first `rank` principal components, then a LayerNorm: an adapter with a bottleneck.

    The components are those of the token embeddings. The LayerNorm has no gain or bias, so every token comes out
    with unit RMS, some hundred times longer than the model's own.
    """

    def __init__(self, vocabulary: Vocabulary, generator: torch.Generator, *, rank: int) -> None:
        super().__init__(vocabulary, generator)
        require(1 <= rank <= vocabulary.width, "rank", rank, f"must be between 1 and the width, {vocabulary.width}")
        self.components = vocabulary.principal_axes[:, :rank]  # (D, rank)

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """LayerNorm(mean + P P' (x - mean)) with P the first components."""
        components, mean = self.components.to(x), self.vocabulary.mean.to(x)
        kept = mean + (x - mean) @ components @ components.T
        centred = kept - kept.mean(dim=-1, keepdim=True)
        return centred / rms(centred)[..., None]  # by hand: layer_norm's eps is as large as a token's variance
