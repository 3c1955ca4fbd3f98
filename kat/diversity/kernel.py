"""Cosines of texts, their mean distance and the Vendi score. Main entry: `cosines()`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def cosines(emb: Array, empty: NDArray[np.bool_]) -> Array:
    """Return the cosines of all pairs of texts in a set, (..., n, n).

    Args:
        emb: Unit rows, (..., n, D). The rows of empty texts are ignored.
        empty: Marks for empty texts, (..., n). They have cosine 1 with one another and 0 with other texts.
    """
    rows = np.where(empty[..., None], 0.0, emb)
    kernel: Array = rows @ rows.swapaxes(-1, -2) + (empty[..., None] & empty[..., None, :])
    return kernel


def mean_distance(kernel: Array) -> float:
    """Return the mean of 1 - cosine over all pairs of texts in a set, in [0, 2].

    Args:
        kernel: The cosines, (n, n), n at least 2.
    """
    n = len(kernel)
    return float((1 - kernel)[~np.eye(n, dtype=bool)].sum() / (n * (n - 1)))


def mean_distance_without(kernel: Array) -> Array:
    """Return the mean distance of the set without each text in turn, (n,)."""
    n = len(kernel)
    distances = np.where(np.eye(n, dtype=bool), 0.0, 1 - kernel)
    result: Array = (distances.sum() - 2 * distances.sum(axis=1)) / ((n - 1) * (n - 2))
    return result


def vendi(kernel: Array) -> float:
    """Return the Vendi score of a set, the effective number of different texts, in [1, n].

    Source: Friedman and Dieng 2023, exp(-sum of p log p) over the eigenvalues p of kernel / n.

    Args:
        kernel: The cosines, (n, n), positive semi-definite, with 1 on the diagonal.
    """
    eigenvalues = np.linalg.eigvalsh(kernel / len(kernel))
    p = eigenvalues[eigenvalues > 0]
    return float(np.exp(-(p * np.log(p)).sum()))
