"""What a latent encoder is trained on, as pure functions; each returns one number for one passage."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cosine_similarity

from latentwire.harness.errors import UserError
from latentwire.lm.vocabulary import Vocabulary, rms

DISTANCES = ("cosine", "mse")
NAMES = ("embedding", "text", "continuation", "answer", "distillation", "rms", "manifold")


def embedding_loss(latents: Tensor, targets: Tensor, unit: float, distance: str) -> Tensor:
    """Return the distance from what the positions stand for.

    Args:
        latents: (L, D).
        targets: (L, D), token embeddings, or averages of them where tokens share a position.
        unit: Mean RMS of the token embeddings: squared errors are in units of its square, whatever model it is.
        distance: `cosine` (1 - cosine, blind to length) or `mse`.

    Raises:
        UserError: Another distance.
    """
    if distance == "cosine":
        return (1 - cosine_similarity(latents, targets, dim=-1)).mean()
    if distance == "mse":
        return ((latents - targets) / unit).square().mean()
    raise UserError(f"distance={distance}: unknown; use one of {', '.join(DISTANCES)}")


def rms_loss(latents: Tensor, unit: float) -> Tensor:
    """Return the mean squared log of the ratio of RMS to that of the tokens: (L, D) -> ()."""
    return (rms(latents) / unit).log().square().mean()


def manifold_loss(latents: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Return 1 - cosine with the nearest token, the mean over positions: (L, D) -> ()."""
    nearest = vocabulary.embeddings[vocabulary.nearest(latents.detach(), 1).squeeze(-1)]
    return (1 - cosine_similarity(latents, nearest.to(latents), dim=-1)).mean()
