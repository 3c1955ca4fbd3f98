"""Losses on a language model's output: `token_loss()` (cross-entropy), `distillation_loss()` (KL divergence) and
`hidden_loss()` (distance of hidden states).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, smooth_l1_loss


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


def hidden_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean distance of hidden states, each layer in units of the standard deviation of the teacher's states.

    The distance is the smooth L1 loss, as in CompLLM (arXiv 2509.19228): a few dimensions have huge values.

    Args:
        student: States of the LM after the latents, (layers, N, D).
        teacher: States of the same LM for the same tokens after the text, (layers, N, D).

    Returns:
        The mean over layers, tokens and dimensions, ().
    """
    scale = teacher.float().std(dim=(1, 2), keepdim=True)
    return smooth_l1_loss(student.float() / scale, teacher.float() / scale)
