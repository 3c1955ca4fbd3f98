"""soft_codebook: a soft mixture of learnable codes, k-means of the vocabulary."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from latentwire.lm.vocabulary import Vocabulary
from latentwire.transforms.base import Transform, require


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
