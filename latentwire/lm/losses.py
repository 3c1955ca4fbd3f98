"""Losses on a language model's logits: `token_loss()` (cross-entropy) and `distillation_loss()` (KL divergence)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of the next tokens, in nats.

    Args:
        logits: Logits, (N, V).
        targets: Ids of the next tokens, (N,).

    Returns:
        The mean over tokens, ().
    """
    return cross_entropy(logits.float(), targets)


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(teacher || student), the mean over tokens, in nats.

    Args:
        student: Logits of the LM after the latents, (N, V).
        teacher: Logits of the same LM for the same tokens after the text, (N, V).

    Returns:
        The mean over tokens, ().
    """
    teacher_logps = teacher.float().log_softmax(dim=-1)
    return kl_div(student.float().log_softmax(dim=-1), teacher_logps, log_target=True, reduction="batchmean")
