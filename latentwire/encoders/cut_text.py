"""The encoder `cut_text`: learned vectors, then the passage's first tokens as they are. Main entry: `CutText`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from latentwire.encoders.base import Encoder, LMFacts, Passages, register_encoder
from latentwire.lm.vocabulary import rms
from latentwire.transforms.base import require

NOISE = 0.1  # standard deviation of the first style vectors around the mean token, which has an RMS of 1


@register_encoder("cut_text", label="cut_text{ratio}_style{style_tokens}")
class CutText(Encoder):
    """A trained control: learned style vectors and the beginning of the passage, in ceil(T / ratio) positions.

    Training shows an encoder how answers are written. This control learns only that: its few vectors are the same for
    every passage, and the passage's own tokens pass unchanged. At least one position is a token of the passage.

    Args:
        lm: What the encoder knows of the LM.
        ratio: Number of tokens for each position.
        style_tokens: Number of learned vectors.

    Raises:
        UserError: A dial is out of range.
    """

    embeds_directly = True
    any_ratio = True

    def __init__(self, lm: LMFacts, *, ratio: int, style_tokens: int) -> None:
        super().__init__(lm)
        require(ratio >= 1, "ratio", ratio, "is the number of tokens for each position: must be at least 1")
        require(style_tokens >= 1, "style_tokens", style_tokens, "must be at least 1")
        self.ratio, self.z_width = ratio, lm.width
        self.style = nn.Parameter(NOISE * torch.randn(style_tokens, lm.width))

    @property
    def shortest(self) -> int:  # type: ignore[override]
        """Fewest tokens of a passage, as in `lm_layers`, so that both train on the same passages."""
        return self.ratio

    @torch.no_grad()
    def start_from(self, lm: PreTrainedModel) -> None:
        """Move the style vectors to the mean token embedding plus noise, with the tokens' mean RMS."""
        table = lm.get_input_embeddings().weight
        assert isinstance(table, Tensor)
        mean = table.float().mean(dim=0).to(self.style)
        start = mean / rms(mean) + self.style
        self.style.copy_(self.mean_token_rms * start / rms(start)[:, None])

    def positions(self, tokens: int) -> int:
        """Return ceil(T / ratio)."""
        return math.ceil(tokens / self.ratio)

    def kept(self, tokens: int) -> int:
        """Return how many first tokens of a passage are among its positions, at least 1."""
        return max(1, self.positions(tokens) - len(self.style))

    def token_positions(self, tokens: int) -> slice:
        """Return the positions after the style vectors."""
        positions = self.positions(tokens)
        return slice(positions - self.kept(tokens), positions)

    def stands_for(self, passages: Passages) -> Tensor:
        """Return the first tokens of each passage at their positions, 0 for the style vectors: (B, L, D)."""
        rows = [
            nn.functional.pad(embeds[: self.kept(tokens)], (0, 0, self.token_positions(tokens).start, 0))
            for embeds, tokens in zip(passages.embeds, passages.lengths, strict=True)
        ]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def forward(self, passages: Passages) -> Tensor:
        """Return the style vectors and the first tokens of each passage: (B, L, D)."""
        rows = []
        for embeds, tokens in zip(passages.embeds, passages.lengths, strict=True):
            kept = self.kept(tokens)
            rows.append(torch.cat([self.style[: self.positions(tokens) - kept], embeds[:kept]]))
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)
