"""Attention mask of completions that share a prompt; each attends to the prompt and itself: `tree_mask()`."""

from __future__ import annotations

import torch
from torch import Tensor


def tree_mask(branch: Tensor, dtype: torch.dtype, prompt_index: Tensor | None = None) -> Tensor:
    """Return the attention mask of sequences of T tokens, (..., T, T), to be added to the attention scores.

    Args:
        branch: Branch of each token, (..., T): 0 in a prompt, the completion's number in a completion, -1 in padding.
        dtype: Data type of the mask.
        prompt_index: Index of each token's prompt, (..., T), if a sequence has several prompts.
    """
    column = torch.arange(branch.shape[-1])
    visible = column[:, None] >= column
    visible = visible & ((branch[..., None, :] == branch[..., :, None]) | (branch[..., None, :] == 0))
    if prompt_index is not None:
        visible = visible & (prompt_index[..., None, :] == prompt_index[..., :, None])
    return torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
