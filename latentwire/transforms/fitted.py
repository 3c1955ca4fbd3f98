"""Repairs that are fitted once, over all embeddings of a source: moments, whitening, orthogonal alignment.

Where they aim at the vocabulary's mean and covariance they inherit a bias: these run over all tokens alike, while a
text uses a few of them most of the time. Matching moments therefore moves even clean text.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from latentwire.harness.errors import UserError
from latentwire.lm.vocabulary import Vocabulary
from latentwire.transforms.base import EMBEDDINGS, PAIRS, Transform

ROUNDS = 10  # of matching and turning, at most
MATCHED = 2048  # embeddings that are matched with the vocabulary in each round


class MomentMatching(Transform):
    """Per dimension, mean and standard deviation of the source, over all its embeddings, become the vocabulary's."""

    fits = EMBEDDINGS

    def fit(self, x: Tensor, truth: Tensor | None, generator: torch.Generator) -> None:
        """Take the source's mean and spread; a dimension without spread gets the vocabulary's mean."""
        require_several(x, "moment_matching")
        self.mean, spread = x.mean(dim=0), x.std(dim=0, correction=0)  # (D,)
        floor = 8 * torch.finfo(x.dtype).eps * x.abs().amax(dim=0)
        flat = spread <= floor
        self.gain = torch.where(flat, 0.0, self.vocabulary.std.to(x) / spread.where(~flat, torch.ones_like(spread)))
        self.diagnosis = {"dimensions_without_spread": int(flat.sum())}

    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """(x - source mean) / source std * vocabulary std + vocabulary mean."""
        return (x - self.mean.to(x)) * self.gain.to(x) + self.vocabulary.mean.to(x)


class Whitening(Transform):
    """The source's whole covariance becomes the vocabulary's: whitened symmetrically (ZCA), then coloured.

    The source's covariance is shrunk towards a sphere as its number of embeddings demands (oracle approximating
    shrinkage, Chen et al. 2010, equation 23).
    """

    fits = EMBEDDINGS

    def fit(self, x: Tensor, truth: Tensor | None, generator: torch.Generator) -> None:
        """Take the source's mean and covariance."""
        require_several(x, "whitening")
        rows = x.cpu().double()
        self.mean = rows.mean(dim=0)  # (D,)
        covariance, shrinkage = shrunk_covariance(rows - self.mean)
        if float(covariance.trace()) <= 0:
            raise UserError("whitening: all embeddings of the source are the same, so they have no covariance to undo")
        self.map = _power(covariance, -0.5) @ _power(self.vocabulary.covariance, 0.5)  # (D, D)
        self.diagnosis = {"shrinkage": round(shrinkage, 4)}

    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """(x - source mean) source covariance^-1/2 vocabulary covariance^1/2 + vocabulary mean."""
        return (x - self.mean.to(x)) @ self.map.to(x) + self.vocabulary.mean.to(x)


class Procrustes(Transform):
    """The orthogonal matrix that turns the source onto the vocabulary, fitted without labels.

    It starts from no rotation at all, and from pairs of nearest length (a rotation keeps lengths), and goes on from
    the better of the two by turns: mutual nearest neighbours by direction, then the best matrix for these pairs.
    Limits: it finds rotations that leave most tokens nearest to themselves, whatever the noise, and any rotation that
    leaves lengths exact to about six digits. A large rotation with noise or another scale it does not find; the
    diagnosis' margin is then that of chance.
    """

    fits = EMBEDDINGS

    def fit(self, x: Tensor, truth: Tensor | None, generator: torch.Generator) -> None:
        """Find the rotation."""
        require_several(x, "procrustes")
        self.rotation, margin = find_rotation(self.vocabulary, sample(x, MATCHED, generator))
        # Relative to a random rotation: 0 is none.
        off = (self.rotation - torch.eye(len(self.rotation))).norm() / (2 * len(self.rotation)) ** 0.5
        self.diagnosis = {
            "margin": round(margin, 4),
            "turned": round(float(off), 4),
        }  # turned: 0 not at all, 1 at random

    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """R x, row by row; lengths stay."""
        return x @ self.rotation.to(x)


class ProcrustesSupervised(Transform):
    """A positive control: the orthogonal matrix fitted to pairs of source embedding and true token.

    Schoenemann 1966, on directions, so that long embeddings do not weigh more.
    """

    fits = PAIRS

    def fit(self, x: Tensor, truth: Tensor | None, generator: torch.Generator) -> None:
        """Fit the rotation to directions."""
        assert truth is not None
        require_several(x, "procrustes_supervised")
        self.rotation = best_rotation(x, truth)
        before, after = (
            float(torch.cosine_similarity(rows, truth, dim=-1).mean()) for rows in (x, x @ self.rotation.to(x))
        )
        self.diagnosis = {"cosine_before": round(before, 4), "cosine_after": round(after, 4)}

    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """R x, row by row; lengths stay."""
        return x @ self.rotation.to(x)


def require_several(x: Tensor, name: str) -> None:
    """Refuse to fit on fewer than two embeddings, or on ones that are not finite.

    Raises:
        UserError: They are.
    """
    if len(x) < 2:
        raise UserError(f"{name}: is fitted on embeddings of the source, and there are {len(x)}; at least 2 are needed")
    if not bool(torch.isfinite(x).all()):
        raise UserError(f"{name}: the source gives NaN or infinite values; use less extreme dials, or dtype=float32")


def sample(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return up to `count` rows, drawn without replacement: (N, D) -> (n, D)."""
    return x[torch.randperm(len(x), generator=generator)[:count].to(x.device)]


def shrunk_covariance(centred: Tensor) -> tuple[Tensor, float]:
    """Return the covariance of centred rows (N, D), shrunk towards a sphere, (D, D), and the share of the sphere."""
    n, d = centred.shape
    covariance = centred.T @ centred / n
    squares, mean_square = float(covariance.square().mean()), float(covariance.trace() / d) ** 2
    below = (n + 1) * (squares - mean_square / d)
    share = 1.0 if below <= 0 else min(1.0, (squares + mean_square) / below)
    sphere = torch.eye(d, dtype=centred.dtype) * covariance.trace() / d
    return (1 - share) * covariance + share * sphere, share


def _power(symmetric: Tensor, exponent: float) -> Tensor:
    """Return a power of a positive semi-definite matrix; directions without variance stay without."""
    values, vectors = torch.linalg.eigh(symmetric)
    real = values > 1e-12 * values[-1]
    powered = torch.where(real, values.clamp_min(1e-300) ** exponent, torch.zeros_like(values))
    return (vectors * powered) @ vectors.T


def best_rotation(x: Tensor, tokens: Tensor) -> Tensor:
    """Return the orthogonal R, (D, D), for which the directions of x R come nearest to those of tokens; both (N, D)."""
    u, _, v = torch.linalg.svd((normalize(x, dim=-1).T @ normalize(tokens, dim=-1)).cpu().double())
    return (u @ v).float()


def margins(vocabulary: Vocabulary, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest token of each embedding and by how much its cosine beats the next: (N, D) -> (N,), (N,)."""
    ids = vocabulary.nearest(x, 2)
    cosines = torch.cosine_similarity(vocabulary.embeddings[ids].to(x), x[:, None], dim=-1)
    return ids[:, 0], cosines[:, 0] - cosines[:, 1]


def find_rotation(vocabulary: Vocabulary, x: Tensor) -> tuple[Tensor, float]:
    """Return the rotation (D, D) that `Procrustes` describes and the mean margin of x (N, D) turned by it."""
    starts = [torch.eye(vocabulary.width), best_rotation(x, vocabulary.embeddings[_same_length(vocabulary, x)].to(x))]
    tried = [(float(margins(vocabulary, x @ start.to(x))[1].mean()), start) for start in starts]
    best, rotation = max(tried, key=lambda entry: entry[0])
    for _ in range(ROUNDS):
        turned = x @ rotation.to(x)
        ids, rows = _mutual(vocabulary, turned)
        refined = best_rotation(x[rows], vocabulary.embeddings[ids].to(x))
        margin = float(margins(vocabulary, x @ refined.to(x))[1].mean())
        if margin <= best * 1.001:
            break
        best, rotation = margin, refined
    return rotation, best


def _same_length(vocabulary: Vocabulary, x: Tensor) -> Tensor:
    """Return the tokens whose lengths come nearest to those of x: (N, D) -> (N,)."""
    lengths, order = vocabulary.embeddings.norm(dim=-1).to(x).sort()
    own = x.norm(dim=-1)
    right = torch.searchsorted(lengths, own).clamp(1, len(lengths) - 1)
    nearer_left = own - lengths[right - 1] < lengths[right] - own
    return order[torch.where(nearer_left, right - 1, right)]


def _mutual(vocabulary: Vocabulary, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return tokens and rows of x (N, D) that are each other's nearest by direction, two vectors of one length."""
    tokens, place = vocabulary.nearest(x, 1).squeeze(-1).unique(return_inverse=True)
    cosines = normalize(x, dim=-1) @ normalize(vocabulary.embeddings[tokens].to(x), dim=-1).T  # (N, tokens)
    rows = cosines.argmax(dim=0)
    mutual = place[rows] == torch.arange(len(tokens), device=x.device)
    return tokens[mutual], rows[mutual]
