"""Transforms fitted once to a source: `MomentMatching`, `Whitening`, `Procrustes` and `ProcrustesSupervised`.

MomentMatching and Whitening have a bias. The vocabulary's mean and covariance weigh all tokens equally, while a text
mostly uses a few tokens. So these transforms move even clean text.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from latentwire.harness.errors import UserError
from latentwire.lm.token_search import TokenSearch
from latentwire.lm.vocabulary import Vocabulary
from latentwire.transforms.base import EMBEDDINGS, PAIRS, Transform, register_transform

MAX_ROUNDS = 10  # rounds of matching tokens and refitting the rotation
MAX_MATCHED = 2048  # embeddings that a rotation is fitted to


@register_transform("moment_matching", label="moment_matching")
class MomentMatching(Transform):
    """Sets the source's mean and standard deviation of each dimension, over all its embeddings, to the vocabulary's."""

    fits = EMBEDDINGS

    def fit(self, x: Tensor, truth: Tensor | None, generator: torch.Generator) -> None:
        """Compute the source's mean and standard deviation; a constant dimension gets the vocabulary's mean."""
        require_several(x, "moment_matching")
        self.mean, std = x.mean(dim=0), x.std(dim=0, correction=0)  # (D,)
        rounding_error = 8 * torch.finfo(x.dtype).eps * x.abs().amax(dim=0)
        constant = std <= rounding_error
        self.gain = torch.where(constant, 0.0, self.vocabulary.std.to(x) / std.where(~constant, torch.ones_like(std)))
        self.diagnosis = {"dimensions_without_spread": int(constant.sum())}

    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return (x - source mean) / source std * vocabulary std + vocabulary mean."""
        return (x - self.mean.to(x)) * self.gain.to(x) + self.vocabulary.mean.to(x)


@register_transform("whitening", label="whitening")
class Whitening(Transform):
    """Sets the source's covariance to the vocabulary's: symmetric (ZCA) whitening, then colouring.

    The fewer embeddings the source has, the more its covariance is shrunk towards a multiple of the identity. Source:
    oracle approximating shrinkage, Chen et al. 2010, equation 23.
    """

    fits = EMBEDDINGS

    def fit(self, x: Tensor, truth: Tensor | None, generator: torch.Generator) -> None:
        """Compute the source's mean and covariance."""
        require_several(x, "whitening")
        rows = x.cpu().double()
        self.mean = rows.mean(dim=0)  # (D,)
        covariance, shrinkage = shrunk_covariance(rows - self.mean)
        if float(covariance.trace()) <= 0:
            raise UserError("whitening: all embeddings of the source are the same; choose a source with a covariance")
        self.map = _power(covariance, -0.5) @ _power(self.vocabulary.covariance, 0.5)  # (D, D)
        self.diagnosis = {"shrinkage": round(shrinkage, 4)}

    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return (x - source mean) source covariance^-1/2 vocabulary covariance^1/2 + vocabulary mean."""
        return (x - self.mean.to(x)) @ self.map.to(x) + self.vocabulary.mean.to(x)


class Rotation(Transform):
    """The base class of transforms that multiply by an orthogonal matrix, which fit() finds."""

    rotation: Tensor  # (D, D)

    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return x R, row by row; lengths stay."""
        return x @ self.rotation.to(x)


@register_transform("procrustes", label="procrustes")
class Procrustes(Rotation):
    """Multiplies by the orthogonal matrix that maps the source onto the vocabulary, fitted without labels.

    There are two candidates to start from: no rotation, and the rotation of pairs of nearest length (rotations keep
    lengths). From the better one, two steps alternate: find mutual nearest neighbours by direction, then fit the best
    matrix to these pairs.

    Limits: the fit finds rotations that leave most tokens nearest to themselves, even under noise. It also finds any
    rotation that keeps lengths to about six digits. It does not find a large rotation with noise or another scale; the
    margin in the diagnosis is then at chance level.
    """

    fits = EMBEDDINGS

    def fit(self, x: Tensor, truth: Tensor | None, generator: torch.Generator) -> None:
        """Find the rotation."""
        require_several(x, "procrustes")
        self.rotation, margin = find_rotation(self.vocabulary, sample_rows(x, MAX_MATCHED, generator))
        # 0 for the identity, 1 for the expected distance of a random rotation from the identity.
        turned = (self.rotation - torch.eye(len(self.rotation))).norm() / (2 * len(self.rotation)) ** 0.5
        self.diagnosis = {"margin": round(margin, 4), "turned": round(float(turned), 4)}


@register_transform("procrustes_supervised", label="procrustes_supervised")
class ProcrustesSupervised(Rotation):
    """Positive control: the orthogonal matrix fitted to pairs of source embedding and true token.

    The fit uses directions, so that long embeddings do not weigh more. Source: Schoenemann 1966.
    """

    fits = PAIRS

    def fit(self, x: Tensor, truth: Tensor | None, generator: torch.Generator) -> None:
        """Fit the rotation to the directions of the pairs."""
        assert truth is not None
        require_several(x, "procrustes_supervised")
        self.rotation = best_rotation(x, truth)
        before, after = (
            float(torch.cosine_similarity(rows, truth, dim=-1).mean()) for rows in (x, x @ self.rotation.to(x))
        )
        self.diagnosis = {"cosine_before": round(before, 4), "cosine_after": round(after, 4)}


def require_several(x: Tensor, name: str) -> None:
    """Check that there are at least two embeddings, and that they are finite.

    Args:
        x: Embeddings of the source, (N, D).
        name: Name of the transform, for the error message.

    Raises:
        UserError: There are fewer than two embeddings, or some are not finite.
    """
    if len(x) < 2:
        raise UserError(f"{name}: is fitted on embeddings of the source, and there are {len(x)}; at least 2 are needed")
    if not bool(torch.isfinite(x).all()):
        raise UserError(f"{name}: the source gives NaN or infinite values; use less extreme dials, or dtype=float32")


def sample_rows(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return at most `count` rows, drawn without replacement: (N, D) -> (n, D)."""
    return x[torch.randperm(len(x), generator=generator)[:count].to(x.device)]


def shrunk_covariance(centred: Tensor) -> tuple[Tensor, float]:
    """Return the covariance of centred rows, shrunk towards a multiple of the identity.

    Args:
        centred: Rows with mean 0, (N, D).

    Returns:
        The covariance, (D, D), and the weight of the identity in it, 0 to 1. Source: Chen et al. 2010, equation 23.
    """
    n, d = centred.shape
    covariance = centred.T @ centred / n
    squares, mean_square = float(covariance.square().mean()), float(covariance.trace() / d) ** 2
    denominator = (n + 1) * (squares - mean_square / d)
    share = 1.0 if denominator <= 0 else min(1.0, (squares + mean_square) / denominator)
    sphere = torch.eye(d, dtype=centred.dtype) * covariance.trace() / d
    return (1 - share) * covariance + share * sphere, share


def _power(symmetric: Tensor, exponent: float) -> Tensor:
    """Return a power of a positive semi-definite matrix; directions without variance keep none."""
    values, vectors = torch.linalg.eigh(symmetric)
    nonzero = values > 1e-12 * values[-1]
    powered = torch.where(nonzero, values.clamp_min(1e-300) ** exponent, torch.zeros_like(values))
    result: Tensor = (vectors * powered) @ vectors.T
    return result


def best_rotation(x: Tensor, tokens: Tensor) -> Tensor:
    """Return the orthogonal matrix R that best maps the directions of embeddings to the directions of tokens.

    Args:
        x: Embeddings, (N, D).
        tokens: Embeddings of their tokens, (N, D).

    Returns:
        R, (D, D) float32: it minimises the squared distance between the directions of x R and of the tokens.
    """
    u, _, v = torch.linalg.svd((normalize(x, dim=-1).T @ normalize(tokens, dim=-1)).cpu().double())
    rotation: Tensor = (u @ v).float()
    return rotation


def nearest_with_margin(search: TokenSearch, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest token of each embedding, and the margin of its cosine over the second nearest token's.

    Args:
        search: The tokens to search.
        x: Embeddings, (N, D).

    Returns:
        Token ids (N,) and margins (N,).
    """
    ids = search.nearest(x, min(2, len(search.embeddings)))
    cosines = torch.cosine_similarity(search.embeddings[ids].to(x), x[:, None], dim=-1)
    return ids[:, 0], cosines[:, 0] - cosines[:, -1]


def find_rotation(vocabulary: Vocabulary, x: Tensor) -> tuple[Tensor, float]:
    """Find the rotation that `Procrustes` describes.

    Args:
        vocabulary: The tokens to rotate onto.
        x: Embeddings of the source, (N, D).

    Returns:
        The rotation, (D, D), and the mean margin of the rotated embeddings.
    """

    def mean_margin(rotation: Tensor) -> float:
        return float(nearest_with_margin(vocabulary.search, x @ rotation.to(x))[1].mean())

    same_length = vocabulary.embeddings[_nearest_by_length(vocabulary, x)].to(x)
    candidates = [(mean_margin(start), start) for start in (torch.eye(vocabulary.width), best_rotation(x, same_length))]
    best, rotation = max(candidates, key=lambda candidate: candidate[0])
    for _ in range(MAX_ROUNDS):
        ids, rows = _mutual_nearest(vocabulary, x @ rotation.to(x))
        refined = best_rotation(x[rows], vocabulary.embeddings[ids].to(x))
        margin = mean_margin(refined)
        if margin <= best * 1.001:
            break
        best, rotation = margin, refined
    return rotation, best


def _nearest_by_length(vocabulary: Vocabulary, x: Tensor) -> Tensor:
    """Return the token whose length is nearest to each embedding's: (N, D) -> (N,)."""
    token_lengths, order = vocabulary.embeddings.norm(dim=-1).to(x).sort()
    lengths = x.norm(dim=-1)
    right = torch.searchsorted(token_lengths, lengths).clamp(1, len(token_lengths) - 1)
    nearer_left = lengths - token_lengths[right - 1] < token_lengths[right] - lengths
    nearest: Tensor = order[torch.where(nearer_left, right - 1, right)]
    return nearest


def _mutual_nearest(vocabulary: Vocabulary, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return token ids and rows of x (N, D) that are each other's nearest by direction, both (pairs,)."""
    tokens, place = torch.unique(vocabulary.nearest(x, 1).squeeze(-1), return_inverse=True)
    cosines = normalize(x, dim=-1) @ normalize(vocabulary.embeddings[tokens].to(x), dim=-1).T  # (N, tokens)
    rows = cosines.argmax(dim=0)
    mutual = place[rows] == torch.arange(len(tokens), device=x.device)
    return tokens[mutual], rows[mutual]
