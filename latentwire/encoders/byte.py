"""The encoder `byte`: a small transformer over the bytes of the text. Main entry: `ByteEncoder`."""

from __future__ import annotations

import math
from typing import TypedDict

import torch
from torch import Tensor, nn

from latentwire.encoders.base import Encoder, LMFacts, Passages, register_encoder, sinusoids
from latentwire.transforms.base import require

BYTES = 256


class _LayerOptions(TypedDict):
    """Options of a layer of the transformer."""

    dim_feedforward: int
    dropout: float
    activation: str
    batch_first: bool
    norm_first: bool


@register_encoder("byte", label="byte{latent_len}", unlabelled=("byte_layers", "byte_width"))
class ByteEncoder(Encoder):
    """Encodes the bytes of the text with a small transformer; `latent_len` learned queries attend to its output."""

    def __init__(self, lm: LMFacts, *, latent_len: int, byte_width: int, byte_layers: int) -> None:
        super().__init__(lm)
        require(latent_len >= 1, "latent_len", latent_len, "must be at least 1")
        require(byte_layers >= 1, "byte_layers", byte_layers, "must be at least 1")
        require(byte_width >= 8 and byte_width % 8 == 0, "byte_width", byte_width, "must be a multiple of 8")
        self.latent_len, self.z_width = latent_len, byte_width
        heads = max(1, byte_width // 64)
        options: _LayerOptions = {"dim_feedforward": 4 * byte_width, "dropout": 0.0, "activation": "gelu",
                                   "batch_first": True, "norm_first": True}  # fmt: skip
        self.bytes = nn.Embedding(BYTES, byte_width)
        self.queries = nn.Parameter(torch.randn(latent_len, byte_width) / math.sqrt(byte_width))
        self.body = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(byte_width, heads, **options), byte_layers, enable_nested_tensor=False
        )
        self.head = nn.TransformerDecoder(nn.TransformerDecoderLayer(byte_width, heads, **options), byte_layers)

    def positions(self, tokens: int) -> int:
        """Return latent_len, for a text of any length."""
        return self.latent_len

    def forward(self, passages: Passages) -> Tensor:
        """Encode the bytes, then let the queries attend to them: (B, latent_len, Z)."""
        device = self.queries.device
        raw = [torch.tensor(list(text.encode()), device=device) for text in passages.texts]
        ids = nn.utils.rnn.pad_sequence(raw, batch_first=True)  # (B, N)
        lengths = torch.tensor([len(row) for row in raw], device=device)
        padded = torch.arange(ids.shape[1], device=device) >= lengths[:, None]
        embeds = self.bytes(ids) + sinusoids(ids.shape[1], self.z_width).to(device)
        memory = self.body(embeds, src_key_padding_mask=padded)
        z: Tensor = self.head(self.queries.expand(len(raw), -1, -1), memory, memory_key_padding_mask=padded)
        return z
