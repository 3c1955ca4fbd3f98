"""Whitened embeddings, in which no direction dominates the distances. Main entries: `whiten()`, `fit_whitening()`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from latentwire.harness.errors import UserError

NOISE = 1e-9  # share of the largest variance; directions with less are rounding errors of float32
WIDEST = 4096  # dimensions up to which all rows decide the axes; a matrix of D x D would be too large beyond
SAMPLE = 2048  # rows that decide the axes of wider embeddings
CENTRE = 0.1  # constant coordinate, as a share of the root-mean-square length of the whitened rows
BLOCK = 65_536  # rows in float64 at a time


@dataclass(frozen=True)
class ShrunkWhitening:
    """A shrunk whitening of rows of width D, fitted to embeddings by `fit_whitening`.

    Attributes:
        mean: The mean of the embeddings, (D,) float64.
        axes: Their principal axes, each divided by its scale, (D, A) float64.
        centre: The constant coordinate, in the units of the whitened rows.
    """

    mean: Tensor
    axes: Tensor
    centre: float

    @property
    def dim(self) -> int:
        """The width of whitened rows, A + 1."""
        return self.axes.shape[1] + 1

    def __call__(self, rows: Tensor) -> Tensor:
        """Return rows after whitening, as unit rows: (B, D) -> (B, A + 1) float32."""
        y = (rows.double() - self.mean) @ self.axes  # (B, A)
        return normalize(torch.cat([y, y.new_full((len(y), 1), self.centre)], dim=1), dim=1).float()


def whiten(x: Tensor, seed: int = 0) -> Tensor:
    """Return embeddings after a shrunk whitening, as unit rows.

    Raw embeddings vary most along a few directions, such as length and style, which all prompts share. Distances then
    measure how far a prompt is from the mean. So the rows are centred and expressed in their principal components, and
    each component is divided by sqrt(its variance + the median variance). The median keeps weak components from being
    blown up. Unit length removes the distance from the mean, which would dominate the distances again. A constant
    coordinate of a tenth of the root-mean-square length comes before: prompts at the mean stay together, instead of
    pointing in random directions.

    The result does not depend on a rotation of x, and copies of a row do not matter if x has each row once.

    Args:
        x: Rows, (N, D).
        seed: The seed of the sample that decides the axes, for D above 4,096.

    Returns:
        Unit rows, (N, A + 1) float32, with A <= min(D, N - 1).

    Raises:
        UserError: The rows vary in fewer than two directions.

    >>> generator = torch.Generator().manual_seed(0)
    >>> x = torch.randn(500, 3, generator=generator) * torch.tensor([100.0, 1.0, 1.0]) + 7
    >>> [round(float(variance), 1) for variance in whiten(x).var(0)]  # the largest was 10,000 times the others
    [0.3, 0.3, 0.4, 0.0]
    """
    whitening = fit_whitening(x, seed)
    return torch.cat([whitening(block) for block in x.split(BLOCK)])


def fit_whitening(x: Tensor, seed: int = 0) -> ShrunkWhitening:
    """Return the whitening that `whiten` applies to x, for rows that come later.

    Args:
        x: Rows, (N, D).
        seed: The seed of the sample that decides the axes, for D above 4,096.

    Raises:
        UserError: The rows vary in fewer than two directions.
    """
    fitted = x if x.shape[1] <= WIDEST else x[_sampled_rows(len(x), seed)]
    mean = sum((block.double().sum(0) for block in fitted.split(BLOCK)), torch.zeros(x.shape[1]).double()) / len(fitted)
    variance, axes = _principal_axes(fitted, mean)
    kept = variance > NOISE * variance.max().clamp(min=1e-300)
    if int(kept.sum()) < 2:
        raise UserError(
            f"embeddings of shape {tuple(x.shape)}: vary in {int(kept.sum())} directions, and whitening needs two; use "
            "sampler.estimator=knn with near_duplicate=1, or another embedder"
        )
    variance, axes = variance[kept], axes[:, kept]  # (A,), (D, A)
    scale = (variance + variance.median()).sqrt()  # (A,)
    length = float((variance / scale**2).sum().sqrt())  # root mean square
    return ShrunkWhitening(mean, axes / scale, CENTRE * length)


def _sampled_rows(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:SAMPLE]


def _principal_axes(x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Return the variances along the principal axes, ascending (A,), and the axes (D, A), both float64.

    If D > N, the axes come from the (N, N) Gram matrix: X X' u = s u gives X'X (X'u) = s (X'u).
    """
    if x.shape[1] > len(x):
        centred = x.double() - mean
        total, vectors = torch.linalg.eigh(centred @ centred.T)
        axes = normalize(centred.T @ vectors, dim=0)
    else:
        gram = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
        for block in x.split(BLOCK):
            centred = block.double() - mean
            gram += centred.T @ centred
        total, axes = torch.linalg.eigh(gram)
    return total.clamp(min=0) / len(x), axes
