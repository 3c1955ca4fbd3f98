"""The attention mask of completions that share their prompt: each sees the prompt and itself."""

from __future__ import annotations

import torch
from torch import Tensor


def tree_mask(branch: Tensor, dtype: torch.dtype, family: Tensor | None = None) -> Tensor:
    """Return the mask of lines of T tokens, (..., T, T), to be added to the attention's scores.

    Args:
        branch: Of each token, (..., T): 0 for a prompt's, the completion's number for a completion's, -1 for padding.
        dtype: Of the mask.
        family: Of each token, (..., T): which prompt it belongs to, where a line holds several.
    """
    column = torch.arange(branch.shape[-1])
    sees = column[:, None] >= column
    sees = sees & ((branch[..., None, :] == branch[..., :, None]) | (branch[..., None, :] == 0))
    if family is not None:
        sees = sees & (family[..., None, :] == family[..., :, None])
    return torch.zeros(sees.shape, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)
