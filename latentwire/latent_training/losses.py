"""Losses of latents: their weights, and the distances from the text, the tokens' RMS and the nearest token.

Main entries: `LossWeights`, `embedding_loss()`. Each function returns one number for one passage.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from latentwire.harness.errors import UserError
from latentwire.harness.results import JsonObject
from latentwire.lm.vocabulary import Vocabulary, rms

DISTANCES = ("cosine", "mse")


@dataclass
class LossWeights:
    """Weight of each loss; a loss with weight 0 is not computed."""

    embedding: float  # reconstruction of the token embeddings
    vocabulary: float  # reconstruction of random tokens' embeddings; encoder=bottleneck only
    text: float  # reconstruction of the text by the LM
    continuation: float
    answer: float
    distillation: float
    hidden: float  # distance of the LM's hidden states at question and answer from its states over the text
    rms: float  # distance from the mean RMS of the tokens
    manifold: float  # distance from the nearest token

    def __post_init__(self) -> None:
        for name, weight in vars(self).items():
            if not 0 <= weight < float("inf"):
                raise UserError(f"weights.{name}={weight}: must be 0 or more")
        if not (self.first_phase_kinds() or self.trains_answers()):
            raise UserError(
                "weights: all losses are off; give embedding, text, continuation, answer, distillation or hidden a "
                "weight above 0"
            )

    def identity(self) -> JsonObject:
        """Return the weights for the identity of a run; `hidden`, a later one, only if it is on."""
        return {name: weight for name, weight in vars(self).items() if name != "hidden" or weight}

    def first_phase_kinds(self) -> list[str]:
        """Return the kinds of steps of the first phase, in the order in which they alternate."""
        kinds = [("reconstruction", self.embedding + self.vocabulary + self.text), ("continuation", self.continuation)]
        return [kind for kind, weight in kinds if weight > 0]

    def trains_answers(self) -> bool:
        """Return whether the second phase, which trains on answers, has a loss."""
        return self.answer + self.distillation + self.hidden > 0

    def needs_teacher(self) -> bool:
        """Return whether any loss compares with the LM that reads the text."""
        return self.distillation + self.hidden > 0

    def needs_lm(self) -> bool:
        """Return whether any loss needs a forward pass of the LM."""
        return self.text + self.continuation > 0 or self.trains_answers()


def embedding_loss(latents: Tensor, targets: Tensor, mean_token_rms: float, distance: str) -> Tensor:
    """Return the mean distance of latents from the token embeddings that they stand for.

    Args:
        latents: Latents of one passage, (L, D).
        targets: Token embeddings, (L, D), or their averages if tokens share a position.
        mean_token_rms: Mean RMS of the LM's token embeddings; `mse` is in units of its square.
        distance: `cosine` (1 - cosine, independent of length) or `mse`.

    Returns:
        A scalar with gradient.

    Raises:
        UserError: The distance is unknown.
    """
    if distance == "cosine":
        return (1 - cosine_similarity(latents, targets, dim=-1)).mean()
    if distance == "mse":
        return ((latents - targets) / mean_token_rms).square().mean()
    raise UserError(f"distance={distance}: unknown; use one of {', '.join(DISTANCES)}")


def rms_loss(latents: Tensor, mean_token_rms: float) -> Tensor:
    """Return the mean over positions of log(RMS / mean_token_rms) squared: (L, D) -> ()."""
    return (rms(latents) / mean_token_rms).log().square().mean()


def manifold_loss(latents: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Return the mean over positions of 1 - cosine with the nearest token embedding: (L, D) -> ()."""
    nearest = vocabulary.embeddings[vocabulary.nearest(latents.detach(), 1).squeeze(-1)]
    return (1 - cosine_similarity(latents, nearest.to(latents), dim=-1)).mean()


def sum_of(losses: Iterable[Tensor]) -> Tensor:
    """Return the sum of scalars."""
    return torch.stack(list(losses)).sum()
