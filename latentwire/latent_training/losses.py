"""Losses of latents as pure functions: distance from the text, from the tokens' RMS and from the nearest token.

Main entry: `embedding_loss()`. Each function returns one number for one passage.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cosine_similarity

from latentwire.harness.errors import UserError
from latentwire.lm.vocabulary import Vocabulary, rms

DISTANCES = ("cosine", "mse")


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
