"""What a latent encoder is trained on, as pure functions; each returns one number for one passage."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, kl_div

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


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of the next tokens: (N, V), (N,) -> (), in nats."""
    return cross_entropy(logits.float(), targets)


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(teacher || student), the mean over tokens, in nats.

    Args:
        student: Logits over the latents, (N, V).
        teacher: Logits of the same LM at the same tokens over the text, (N, V).
    """
    theirs = teacher.float().log_softmax(dim=-1)
    return kl_div(student.float().log_softmax(dim=-1), theirs, log_target=True, reduction="batchmean")


def likeness(latents: list[Tensor]) -> float:
    """Return the mean cosine between latents of different passages at the same position: near 1 they have collapsed.

    Args:
        latents: (L_i, D) of different passages.

    Returns:
        The mean over pairs of neighbours in the list; 0 for fewer than two passages.
    """
    pairs = itertools.pairwise(latents)
    values = [cosine_similarity(a[: len(b)], b[: len(a)], dim=-1).mean() for a, b in pairs if len(a) and len(b)]
    return float(torch.stack(values).mean()) if values else 0.0
