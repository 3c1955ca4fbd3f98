"""Statistics, neighbours and k-means codes of a model's token embeddings. Main entry: `Vocabulary`."""

from __future__ import annotations

from functools import cached_property, lru_cache

import faiss
import torch
from torch import Tensor

from latentwire.harness.errors import UserError
from latentwire.lm.token_search import TokenSearch


class Vocabulary:
    """The token embeddings of a model, with their statistics, neighbours and k-means codes.

    Args:
        embeddings: Output of the model's embedding module for every token, (V, D), any float dtype. The module's weight
            is not enough: some models scale inside the module.
        seed: Seed of the k-means initialisation.

    >>> vocabulary = Vocabulary(torch.eye(4))
    >>> vocabulary.nearest(torch.tensor([[0.1, 3.0, 0.0, 0.0]]), k=1)
    tensor([[1]])
    """

    def __init__(self, embeddings: Tensor, seed: int = 0) -> None:
        self.lm_dtype = embeddings.dtype  # of the LM's weights
        self.embeddings = embeddings.detach().float()  # (V, D)
        self.seed = seed
        self.mean_rms = rms(self.embeddings).mean()  # (), mean RMS (root mean square) of a token
        self.mean_norm = self.embeddings.norm(dim=-1).mean()  # (), mean Euclidean length of a token
        self.mean = self.embeddings.mean(dim=0)  # (D,)
        self.std = self.embeddings.std(dim=0, correction=0)  # (D,)
        self.search = TokenSearch(self.embeddings)
        self._codes = lru_cache(maxsize=8)(self._fit_codes)
        self._checksum = self._sum_of_bits()

    @property
    def size(self) -> int:
        """Number of tokens, V."""
        return self.embeddings.shape[0]

    @property
    def width(self) -> int:
        """Width of an embedding, D."""
        return self.embeddings.shape[1]

    def require_unchanged(self, user: str) -> None:
        """Check that the token embeddings are as they were, because all configurations share them.

        Args:
            user: What used them last, for the message.

        Raises:
            UserError: They have changed.
        """
        if self._sum_of_bits() != self._checksum:
            raise UserError(
                f"{user}: the token embeddings have changed since the model was loaded, so this and every later score "
                "would be wrong; compute on vocabulary.embeddings.clone(), and run the command again"
            )

    def _sum_of_bits(self) -> int:
        """Return the sum of the embeddings' bits as whole numbers, weighted with the token's id."""
        rows = self.embeddings.view(torch.int32).sum(dim=1, dtype=torch.int64)  # (V,)
        return int((rows * torch.arange(1, len(rows) + 1, device=rows.device)).sum())

    @cached_property
    def covariance(self) -> Tensor:
        """Covariance of the token embeddings over the vocabulary, (D, D) float64 on the CPU."""
        total = torch.zeros(self.width, self.width, dtype=torch.float64)
        for rows in self.embeddings.split(8192):
            centred = rows - self.mean
            total += (centred.T @ centred).cpu().double()
        return total / self.size

    @cached_property
    def principal_axes(self) -> Tensor:
        """Eigenvectors of the covariance as columns, largest variance first: (D, D) float32."""
        axes: Tensor = torch.linalg.eigh(self.covariance).eigenvectors.flip(-1).float()
        return axes

    def nearest(self, x: Tensor, k: int) -> Tensor:
        """Return the ids of the k nearest tokens by cosine, best first: (..., D) -> (..., k) int64."""
        return self.search.nearest(x.reshape(-1, self.width), k).reshape(*x.shape[:-1], k)

    def codes(self, size: int) -> tuple[Tensor, float]:
        """Return k-means centroids of the token embeddings, and the concentration of the tokens around them.

        Args:
            size: Number of codes.

        Returns:
            The codes, (size, D) float32, and kappa. Kappa is the concentration of a von Mises-Fisher distribution of
            the tokens' directions around their nearest codes: r (D - r^2) / (1 - r^2), with r the mean cosine. Source:
            Banerjee et al. 2005, section 4.4, here with one kappa for all codes.
        """
        codes, kappa = self._codes(size)
        return codes.clone(), kappa

    def _fit_codes(self, size: int) -> tuple[Tensor, float]:
        points = self.embeddings.cpu().contiguous().numpy()
        kmeans = faiss.Kmeans(self.width, size, niter=20, seed=self.seed, min_points_per_centroid=1)
        kmeans.train(points)
        assert kmeans.centroids is not None
        codes = torch.from_numpy(kmeans.centroids.copy()).to(self.embeddings.device)
        unit_codes = torch.nn.functional.normalize(codes, dim=-1)
        cosines = [
            (torch.nn.functional.normalize(rows, dim=-1) @ unit_codes.T).amax(dim=-1)
            for rows in self.embeddings.split(8192)
        ]
        r = float(torch.cat(cosines).mean().clamp(0, 0.999))
        return codes, r * (self.width - r * r) / (1 - r * r)


def rms(x: Tensor) -> Tensor:
    """Return the root mean square over the last dimension, always above zero: (..., D) -> (...)."""
    return x.square().mean(dim=-1).clamp_min(torch.finfo(x.dtype).tiny).sqrt()
