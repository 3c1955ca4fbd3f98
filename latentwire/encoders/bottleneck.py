"""encoder=bottleneck: each embedding through d_z dimensions."""

from __future__ import annotations

from torch import Tensor, nn

from latentwire.encoders.base import Encoder, Passages
from latentwire.transforms.base import require


class Bottleneck(Encoder):
    """Each token embedding through d_z dimensions, position for position."""

    def __init__(self, width: int, unit: float, *, d_z: int) -> None:
        super().__init__(width, unit)
        require(d_z >= 1, "d_z", d_z, "must be at least 1")
        self.z_width = d_z
        self.down = nn.Linear(width, d_z)

    def forward(self, passages: Passages) -> Tensor:
        """W x + b."""
        z: Tensor = self.down(passages.embeds / self.unit)  # (B, T, Z)
        return z
