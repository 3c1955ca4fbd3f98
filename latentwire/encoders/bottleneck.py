"""The encoder `bottleneck`: each token embedding projected to d_z dimensions. Main entry: `Bottleneck`."""

from __future__ import annotations

from torch import Tensor, nn

from latentwire.encoders.base import Encoder, LMFacts, Passages, register_encoder
from latentwire.transforms.base import require


@register_encoder("bottleneck", label="bottleneck{d_z}")
class Bottleneck(Encoder):
    """Projects each token embedding to d_z dimensions, one latent for each token."""

    encodes_tokens = True

    def __init__(self, lm: LMFacts, *, d_z: int) -> None:
        super().__init__(lm)
        require(d_z >= 1, "d_z", d_z, "must be at least 1")
        self.z_width = d_z
        self.down = nn.Linear(lm.width, d_z)

    def forward(self, passages: Passages) -> Tensor:
        """Return W x + b: (B, T, Z)."""
        z: Tensor = self.down(passages.embeds / self.mean_token_rms)
        return z
