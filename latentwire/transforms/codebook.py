"""The transform soft_codebook: a soft mixture of learnable codes. Main entry: `SoftCodebook`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from latentwire.lm.vocabulary import Vocabulary
from latentwire.transforms.base import Transform, register_transform, require_temperature, require_within_vocabulary


@register_transform("soft_codebook", label="codebook{codebook_size}_tau{tau}")
class SoftCodebook(Transform):
    """Vector quantization with soft assignment: a mixture of codebook_size learnable codes.

    The codes start as k-means centroids of the token embeddings. Their weights are softmax(kappa cos(x, c) / tau): the
    posteriors of a mixture of von Mises-Fisher distributions around the codes' directions, tempered by tau. Kappa is
    fitted to the tokens (`Vocabulary.codes`). In training, with a generator, Gumbel noise is added to the logits. In
    evaluation nothing is random.
    """

    kappa: Tensor

    def __init__(self, vocabulary: Vocabulary, *, codebook_size: int, tau: float) -> None:
        super().__init__(vocabulary)
        require_within_vocabulary("codebook_size", codebook_size, vocabulary)
        require_temperature(tau)
        codes, kappa = vocabulary.codes(codebook_size)
        self.codes = nn.Parameter(codes)  # (codebook_size, D)
        self.register_buffer("kappa", torch.tensor(kappa, device=codes.device))  # saved with its codes
        self.tau = tau

    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return softmax((kappa cos(x, codes) + noise in training) / tau) codes."""
        codes = self.codes.to(x)
        logits = self.kappa.to(x) * (normalize(x, dim=-1) @ normalize(codes, dim=-1).T)  # (..., codebook_size)
        if self.training and generator is not None:
            uniform = torch.rand(logits.shape, generator=generator, dtype=x.dtype).to(x.device)
            tiny = torch.finfo(x.dtype).tiny
            logits = logits - torch.log((-torch.log(uniform.clamp_min(tiny))).clamp_min(tiny))
        return (logits / self.tau).softmax(dim=-1) @ codes
