"""The base class of all encoders, their registry, their input and the adapter after them.

Main entries: `Encoder`, `Passages`, `register_encoder()`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from latentwire.encoders.grouping import group_bounds, pooling_matrix
from latentwire.harness.errors import UserError
from latentwire.harness.registry import ClassRegistry, node_with_dials
from latentwire.harness.results import JsonObject
from latentwire.transforms.base import require

SCALES = ("norm", "free")  # of the adapter: a LayerNorm, or a learned scale
SCALE_SPEED = 10  # AdamW moves every weight by about its learning rate, which is too slow for a factor of 100


@dataclass(frozen=True)
class Passages:
    """A batch of passages, as text and as the LM's token embeddings."""

    texts: list[str]
    lengths: list[int]  # number of tokens of each passage
    embeds: Tensor  # (B, T, D) token embeddings, zero beyond the length
    ids: list[list[int]] | None = None  # token ids, for encoders with `reads_ids`

    @property
    def mask(self) -> Tensor:
        """Mask of real tokens, (B, T) bool."""
        return torch.arange(self.embeds.shape[1], device=self.embeds.device) < torch.tensor(
            self.lengths, device=self.embeds.device
        ).unsqueeze(-1)


def make_passages(texts: list[str], embeds: list[Tensor], ids: list[list[int]] | None = None) -> Passages:
    """Return a batch of passages, padded on the right.

    Args:
        texts: The passages.
        embeds: Token embeddings of each passage, (T_i, D).
        ids: Token ids of each passage, for encoders with `reads_ids`.

    Raises:
        UserError: A passage has no tokens.
    """
    lengths = [len(rows) for rows in embeds]
    if not all(lengths):
        raise UserError("an empty passage: there is nothing to encode; leave it out, or use embed_source=empty")
    padded = nn.utils.rnn.pad_sequence([rows.float() for rows in embeds], batch_first=True)
    return Passages(texts, lengths, padded, ids)


@dataclass(frozen=True)
class LMFacts:
    """What an encoder may know of the LM when it is built."""

    width: int  # width of the LM's embeddings, D
    mean_token_rms: float  # mean RMS of the LM's token embeddings
    config: Mapping[str, object] = field(default_factory=dict)  # the LM's config, for encoders with `needs_lm_config`
    dtype: torch.dtype = torch.float32  # of the LM's weights


class Encoder(nn.Module, ABC):
    """The base class: a subclass sets `z_width` and implements `forward`, and `positions` if it compresses.

    An encoder divides its inputs by `mean_token_rms`, so that they have a mean RMS near 1 for every LM.

    Args:
        lm: What the encoder may know of the LM. The dials of a subclass follow as keyword-only arguments.
    """

    label: ClassVar[str]  # pattern of a configuration's name, set by `register_encoder`
    z_width: int  # width of a latent, Z
    reads_ids = False  # whether forward() needs the token ids
    shortest = 1  # fewest tokens of a passage
    needs_lm_config = False  # whether the constructor uses `LMFacts.config`; the encoder's folder then stores it
    ratio: int  # tokens for each latent, of encoders with `any_ratio`
    any_ratio = False  # whether `ratio` may change from step to step
    encodes_tokens = False  # whether single tokens can be encoded without their text, for the loss `vocabulary`
    embeds_directly = False  # whether latents are embeddings of the LM already, so that no adapter follows

    def __init__(self, lm: LMFacts) -> None:
        super().__init__()
        self.width, self.mean_token_rms = lm.width, lm.mean_token_rms

    def start_from(self, lm: PreTrainedModel) -> None:
        """Set the first weights from the LM, for encoders that copy them."""

    def copied(self) -> set[str]:
        """Return the names of parameters that `start_from` copies, which may get a learning rate of their own."""
        return set()

    def learn(self, texts: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> None:
        """Set what the encoder computes from the training passages before training, such as word counts.

        Args:
            texts: Token ids of the training passages.
            tokenizer: The LM's tokenizer.
        """

    @classmethod
    def versions(cls, dials: Mapping[str, object]) -> dict[str, int]:
        """Return the versions of algorithms that decide the weights besides the dials, for the identity of a run."""
        return {}

    def positions(self, tokens: int) -> int:
        """Return the number of latents for a passage of `tokens` tokens."""
        return tokens

    def token_positions(self, tokens: int) -> slice:
        """Return which positions of a passage stand for its tokens; others are the same for every passage."""
        return slice(0, self.positions(tokens))

    def stands_for(self, passages: Passages) -> Tensor:
        """Return the mean token embedding of the group of tokens that each latent represents.

        Args:
            passages: A batch.

        Returns:
            (B, L, D), zero except at a passage's `token_positions`.
        """
        groups = [group_bounds(tokens, self.positions(tokens)) for tokens in passages.lengths]
        averages: Tensor = pooling_matrix(passages.embeds.shape[1], groups).to(passages.embeds) @ passages.embeds
        return averages

    @abstractmethod
    def forward(self, passages: Passages) -> Tensor:
        """Encode passages.

        Args:
            passages: A batch.

        Returns:
            (B, L, Z), with L the largest number of latents of a passage; rows beyond a passage's own are arbitrary.
        """


def _node(name: str, encoder: type[Encoder]) -> JsonObject:
    return node_with_dials("encoder", name, encoder, encoder.label)


ENCODERS: ClassRegistry[Encoder] = ClassRegistry("encoder", "encoder", _node)
E = TypeVar("E", bound=Encoder)


def register_encoder(name: str, *, label: str, unlabelled: tuple[str, ...] = ()) -> Callable[[type[E]], type[E]]:
    """Return a decorator that registers an encoder.

    Args:
        name: Name of the encoder, for encoder=NAME.
        label: Pattern of a configuration's name, with dials in braces: "bottleneck{d_z}".
        unlabelled: Dials that no name can show, such as paths. The label has every other dial.

    Raises:
        UserError: The decorator raises it if the name or the label is taken, or the label is invalid.
    """

    def register(encoder: type[E]) -> type[E]:
        ENCODERS.add_class(name, encoder, label, unlabelled)
        return encoder

    return register


class Adapter(nn.Module):
    """Maps z to the LM's width: a linear layer plus a small MLP, then a LayerNorm or a learned scale.

    The LayerNorm gives every position an RMS of 1. The LM's tokens are shorter; transforms repair the difference. A
    learned scale leaves the lengths free; it starts at the tokens' RMS. If z is as wide as the LM's embeddings, linear
    layer and MLP start as the identity.

    Args:
        z_width: Width of a latent, Z.
        lm: Width of the LM's embeddings, D, and the tokens' RMS.
        hidden: Hidden width of the MLP.
        scale: One of SCALES.

    Raises:
        UserError: `hidden` is below 1, or `scale` is unknown.
    """

    def __init__(self, z_width: int, lm: LMFacts, hidden: int, scale: str) -> None:
        super().__init__()
        width = lm.width
        require(hidden >= 1, "adapter_hidden", hidden, "must be at least 1")
        if scale not in SCALES:
            raise UserError(f"adapter_scale={scale}: unknown; use one of {', '.join(SCALES)}")
        self.line = nn.Linear(z_width, width)
        first, last = nn.Linear(z_width, hidden), nn.Linear(hidden, width)
        self.mlp = nn.Sequential(first, nn.GELU(), last)
        if scale == "norm":
            self.norm: nn.LayerNorm | None = nn.LayerNorm(width)
        else:
            self.norm = None
            self.log_scale = nn.Parameter(torch.tensor(math.log(lm.mean_token_rms) / SCALE_SPEED))
        if z_width == width:
            zeros(last)
            nn.init.eye_(zeros(self.line).weight)

    def forward(self, z: Tensor) -> Tensor:
        """Return LayerNorm(W z + MLP(z)), or the sum times the learned scale: (..., Z) -> (..., D)."""
        y: Tensor = self.line(z) + self.mlp(z)
        return y * (SCALE_SPEED * self.log_scale).exp() if self.norm is None else self.norm(y)


def zeros(layer: nn.Linear) -> nn.Linear:
    """Set the weights and biases of a layer to 0, and return the layer."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def sinusoids(length: int, width: int) -> Tensor:
    """Return sinusoidal position embeddings, (length, width), for texts of any length.

    Source: Vaswani et al. 2017, arXiv 1706.03762, section 3.5, with all sines before all cosines.
    """
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = torch.arange(length)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
