"""The 3-D map of prompts: coordinates and an offline HTML page. Main entries: `project()` and `map_page()`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Literal

import torch
from torch import Tensor

from kat.density.records import MapPoint
from latentwire.harness.errors import UserError
from latentwire.harness.pages import fill

METHODS = ("pca", "umap")
Column = Literal["id", "x", "y", "z", "density", "weight", "source", "text"]
COLUMNS: tuple[Column, ...] = ("id", "x", "y", "z", "density", "weight", "source", "text")  # of the page's data


def project(emb: Tensor, method: str, seed: int) -> tuple[Tensor, list[float]]:
    """Return coordinates of embeddings in three dimensions.

    Args:
        emb: The embeddings, (N, D).
        method: pca or umap.
        seed: The seed of umap.

    Returns:
        Centred coordinates with the farthest at distance 1, (N, 3) float32. For pca also the share of the variance on
        each axis; for umap an empty list.

    Raises:
        UserError: The method is unknown, N < 4, D < 3, or umap-learn is not installed.

    >>> xyz, shares = project(torch.eye(5), "pca", seed=0)
    >>> xyz.shape, len(shares)
    (torch.Size([5, 3]), 3)
    """
    if method not in METHODS:
        raise UserError(f"method={method}: unknown; use one of {', '.join(METHODS)}")
    if len(emb) < 4 or emb.shape[1] < 3:
        raise UserError(
            f"embeddings of shape {tuple(emb.shape)}: a 3-D map needs at least 4 prompts and embeddings of at least "
            "width 3; add prompts, or use another embedder"
        )
    shares: list[float] = []
    if method == "pca":
        xyz, shares = _pca(emb.double())
    else:
        xyz = _umap(emb, seed)
    xyz = xyz - xyz.mean(0)
    return (xyz / xyz.norm(dim=1).max().clamp(min=1e-12)).float(), shares


def _pca(x: Tensor) -> tuple[Tensor, list[float]]:
    """Return the coordinates on the three principal axes, and the share of the variance on each.

    The largest loading of each axis is positive, which makes the signs unique. If D > N, the same axes come from the
    (N, N) Gram matrix: X X' u = s u gives X'X (X'u) = s (X'u).
    """
    x = x - x.mean(0)
    wide = x.shape[1] > len(x)
    variance, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)  # ascending
    axes = vectors[:, -3:].flip(1)
    if wide:
        axes = torch.nn.functional.normalize(x.T @ axes, dim=0)  # (D, 3)
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    total = variance.clamp(min=0).sum().clamp(min=1e-300)
    return x @ (axes * largest.sign()), (variance[-3:].flip(0).clamp(min=0) / total).tolist()


def _umap(emb: Tensor, seed: int) -> Tensor:
    try:
        from umap import UMAP
    except ImportError as error:
        raise UserError(
            "method=umap: umap-learn is not installed; install the extra with pip install -e '.[umap]', or use "
            "method=pca"
        ) from error
    neighbours = min(15, len(emb) - 1)
    init = "spectral" if len(emb) > 10 else "random"
    mapper = UMAP(n_components=3, n_neighbors=neighbours, metric="cosine", init=init, random_state=seed, n_jobs=1)
    return torch.from_numpy(mapper.fit_transform(emb.float().numpy()))


def map_page(points: Sequence[MapPoint], title: str, axes: list[str]) -> str:
    """Return the map as one HTML page without external scripts, fonts or images; its policy forbids them.

    Args:
        points: The prompts, each with id, x, y, z, density, weight, source and text. Texts are shown as plain text.
        title: The title in the corner.
        axes: The names of the three axes.
    """
    columns: dict[str, list[str | float]] = {name: [point[name] for point in points] for name in COLUMNS}
    data = {"title": title, "axes": axes, **columns}
    return fill(files("kat.density").joinpath("map.html").read_text(encoding="utf-8"), data)
