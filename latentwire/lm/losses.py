"""Losses of a language model's logits: cross-entropy of tokens, KL divergence to a teacher."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div


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
