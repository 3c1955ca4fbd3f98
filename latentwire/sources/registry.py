"""What stands in for an encoder: real token embeddings, a known distortion of them, or a trained encoder's latents.

A source distorts the source span alone, passage and question, (T, D) -> (T, D). What all examples share (a rotation, an
offset) is drawn when the source is built; what differs between them is drawn from the generator passed with each
example. A source with `passage_only` puts as many positions as it likes in the place of the passage, (T, D) -> (L, D);
there the question stays real tokens.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from latentwire.encoders.checkpoint import load_latents
from latentwire.encoders.cost import BYTES_PER_NUMBER
from latentwire.encoders.grouping import group_means
from latentwire.encoders.registry import make_passages
from latentwire.harness.errors import UserError
from latentwire.lm.vocabulary import Vocabulary, rms
from latentwire.transforms.base import check_dials, require

MOST_SPREAD = 5.0  # exp(5 z) already spans ten decimal orders of magnitude
SPREAD_RANGE = f"is the standard deviation of a log-normal factor's logarithm, between 0 and {MOST_SPREAD:g}"


class Text:
    """Real token embeddings as they are."""

    passage_only = False  # True: stands for the passage alone, in as many positions as it likes

    def __init__(self, vocabulary: Vocabulary, generator: torch.Generator) -> None:
        self.vocabulary = vocabulary

    def __call__(self, x: Tensor, generator: torch.Generator, passage: str = "") -> Tensor:
        """Distort the embeddings of one example, keeping dtype and device.

        Args:
            x: The source span's embeddings, (T, D); with `passage_only` the passage's.
            generator: Of what differs between examples.
            passage: The passage as text.

        Returns:
            (T, D), or with `passage_only` (L, D), L from 0 on.
        """
        x32 = x.to(torch.promote_types(x.dtype, torch.float32))
        return self.replace(x32, generator, passage).to(x.dtype)

    def replace(self, x: Tensor, generator: torch.Generator, passage: str) -> Tensor:
        """Distort x, which is float32 or float64; a source that reads the text itself does so here."""
        return self.distort(x, generator)

    def positions(self, tokens: int) -> int:
        """Return in how many positions so many tokens result."""
        return tokens

    def size(self, tokens: int) -> int:
        """Return how many bytes stand for so many tokens on the way: embeddings in float16."""
        return BYTES_PER_NUMBER * self.positions(tokens) * self.vocabulary.width

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """x, in float32 or float64."""
        return x


class Scaled(Text):
    """Every embedding times factor; an adapter that ends in a LayerNorm is about 117 times too long."""

    def __init__(self, vocabulary: Vocabulary, generator: torch.Generator, *, factor: float) -> None:
        super().__init__(vocabulary, generator)
        require(1e-10 <= factor <= 1e10, "factor", factor, "must be between 1e-10 and 1e10: float32 must hold squares")
        self.factor = factor

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """factor x."""
        return self.factor * x


class Noisy(Text):
    """White Gaussian noise on each token at snr_db decibels below its own power."""

    def __init__(self, vocabulary: Vocabulary, generator: torch.Generator, *, snr_db: float) -> None:
        super().__init__(vocabulary, generator)
        require(math.isfinite(snr_db), "snr_db", snr_db, "must be a finite number of decibels")
        self.relative = 10 ** (-snr_db / 20)

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """x + rms(x) 10^(-snr_db / 20) z with z standard normal."""
        noise = torch.randn(x.shape, generator=generator).to(x)
        return x + self.relative * rms(x)[..., None] * noise


class Shifted(Text):
    """A constant vector added to every token, offset times the mean token norm long, its direction random."""

    def __init__(self, vocabulary: Vocabulary, generator: torch.Generator, *, offset: float) -> None:
        super().__init__(vocabulary, generator)
        require(offset >= 0 and math.isfinite(offset), "offset", offset, "must be 0 or more mean token norms")
        direction = torch.randn(vocabulary.width, generator=generator)
        self.shift = offset * vocabulary.mean_norm.cpu() * direction / direction.norm()  # (D,)

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """x + offset."""
        return x + self.shift.to(x)


class Rotated(Text):
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


class Mixed(Text):
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


class TokenScale(Text):
    """Each token times a random factor of its own: directions stay, lengths differ from token to token."""

    def __init__(self, vocabulary: Vocabulary, generator: torch.Generator, *, spread: float) -> None:
        super().__init__(vocabulary, generator)
        require(0 <= spread <= MOST_SPREAD, "spread", spread, SPREAD_RANGE)
        self.spread = spread

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """exp(spread z) x with z standard normal, one for each token."""
        z = torch.randn(*x.shape[:-1], 1, generator=generator).to(x)
        return (self.spread * z).exp() * x


class Anisotropic(Text):
    """Each dimension times a random gain of its own, the same ones for every token."""

    def __init__(self, vocabulary: Vocabulary, generator: torch.Generator, *, spread: float) -> None:
        super().__init__(vocabulary, generator)
        require(0 <= spread <= MOST_SPREAD, "spread", spread, SPREAD_RANGE)
        self.gain = (spread * torch.randn(vocabulary.width, generator=generator)).exp()  # (D,)

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """x * gain, dimension by dimension, with gain = exp(spread z)."""
        return x * self.gain.to(x)


class LowRank(Text):
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


class Latent(Text):
    """What a trained encoder makes of the passage, after the transform it was trained with.

    Args:
        checkpoint: Folder of the encoder, or of the run that trained it. For which LM it was trained is checked by who
            knows that LM (`latents.about_latents`).
    """

    passage_only = True

    def __init__(self, vocabulary: Vocabulary, generator: torch.Generator, *, checkpoint: str) -> None:
        super().__init__(vocabulary, generator)
        self.latents = load_latents(checkpoint, vocabulary)

    def replace(self, x: Tensor, generator: torch.Generator, passage: str) -> Tensor:
        """Encode the passage: from its tokens or its text, as the encoder wants."""
        ids = None
        if self.latents.encoder.reads_ids:  # x are real tokens, each the nearest to itself but for twins
            ids = [self.vocabulary.nearest(x, 1).flatten().tolist()]
        latents: Tensor = self.latents(make_passages([passage], [x], ids))[0]
        return latents

    def positions(self, tokens: int) -> int:
        """As many as the encoder makes."""
        return self.latents.encoder.positions(tokens)

    def size(self, tokens: int) -> int:
        """Of z in float16: the adapter stands on the LM's side."""
        return BYTES_PER_NUMBER * self.positions(tokens) * self.latents.encoder.z_width


class Cut(Text):
    """Control: the passage's first tokens, ceil(T / ratio) of them, or `positions` where that is given."""

    passage_only = True

    def __init__(
        self, vocabulary: Vocabulary, generator: torch.Generator, *, ratio: float, positions: int | None
    ) -> None:
        super().__init__(vocabulary, generator)
        require(ratio >= 1 and math.isfinite(ratio), "ratio", ratio, "tokens for each position: must be 1 or more")
        require(positions is None or positions >= 1, "positions", positions or 0, "must be at least 1")
        self.ratio, self.at_most = ratio, positions

    def positions(self, tokens: int) -> int:
        """How many are left of so many."""
        return math.ceil(tokens / self.ratio) if self.at_most is None else min(tokens, self.at_most)

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The beginning of x."""
        return x[: self.positions(len(x))]


class Averaged(Cut):
    """Control: the means of groups of neighbouring tokens of nearly equal size, not trained; as many as Cut keeps."""

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(T, D) -> (L, D)."""
        return group_means(x, self.positions(len(x)))


class Empty(Text):
    """Control: no passage."""

    passage_only = True

    def positions(self, tokens: int) -> int:
        """None."""
        return 0

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(T, D) -> (0, D)."""
        return x[:0]


SOURCES: dict[str, type[Text]] = {
    "text": Text,
    "scaled": Scaled,
    "noisy": Noisy,
    "shifted": Shifted,
    "rotated": Rotated,
    "mixed": Mixed,
    "token_scale": TokenScale,
    "anisotropic": Anisotropic,
    "low_rank": LowRank,
    "latent": Latent,
    "cut": Cut,
    "averaged": Averaged,
    "empty": Empty,
}


def build_source(name: str, dials: dict[str, Any], vocabulary: Vocabulary, generator: torch.Generator) -> Text:
    """Build a source.

    Raises:
        UserError: An unknown name, a dial it does not have or lacks, or a dial out of range.
    """
    if name not in SOURCES:
        raise UserError(f"embed_source={name}: unknown; use one of {', '.join(SOURCES)}")
    check_dials(name, dials, SOURCES[name])
    return SOURCES[name](vocabulary, generator, **dials)
