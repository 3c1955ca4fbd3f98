"""Prompts -> unit-norm embeddings (N, D), and the file they are kept in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from latentwire.harness.errors import UserError


@torch.no_grad()
def embed_hidden(model: Any, tokenizer: Any, texts: Sequence[str], batch_tokens: int = 8192) -> Tensor:
    """Return the mean of the final hidden states over a text's real tokens, (N, D) float32 unit rows on the CPU.

    Args:
        model: A causal LM of transformers.
        tokenizer: Its tokenizer.
        texts: N texts.
        batch_tokens: Positions (rows x length) in one forward pass; bounds the memory.

    Raises:
        UserError: A text has no tokens.
    """
    ids = [tokenizer(text)["input_ids"] for text in texts]
    for text, tokens in zip(texts, ids, strict=True):
        if not tokens:
            raise UserError(f"prompt {text!r}: has no tokens, so it has no embedding; remove it")
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    rows: list[Tensor] = [torch.empty(0)] * len(ids)
    body = model.base_model
    while order:
        longest = len(ids[order[-1]])
        batch = order[-max(1, batch_tokens // longest) :]
        del order[-len(batch) :]
        tokens = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, i in enumerate(batch):
            tokens[row, : len(ids[i])] = torch.tensor(ids[i])
            mask[row, : len(ids[i])] = 1
        mask = mask.to(model.device)
        hidden = body(input_ids=tokens.to(model.device), attention_mask=mask).last_hidden_state.float()  # (B, T, D)
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        for i, row in zip(batch, normalize(pooled, dim=-1).cpu(), strict=True):
            rows[i] = row
    return torch.stack(rows)


def load_embeddings(path: Path | str) -> tuple[list[str], Tensor]:
    """Read an embeddings file: ids and float32 unit rows (N, D).

    Raises:
        UserError: No such file, written by something else, or ids and rows that do not fit.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; make it with: python run.py task=embed out={path}")
    try:
        blob = torch.load(path, map_location="cpu", weights_only=True)
        ids, emb = blob["ids"], blob["emb"]
    except Exception as error:
        raise UserError(
            f"{path}: is no embeddings file of this project ({type(error).__name__}); make it with task=embed"
        ) from error
    if not isinstance(ids, list) or not isinstance(emb, Tensor) or emb.ndim != 2 or len(ids) != len(emb):
        raise UserError(f"{path}: its ids and its rows do not fit; make it again with task=embed")
    if len(set(ids)) != len(ids):
        raise UserError(f"{path}: has duplicate ids; make it again with task=embed from unique prompts")
    emb = emb.float()
    if not emb.isfinite().all():
        bad = ids[int((~emb.isfinite().all(1)).nonzero()[0])]
        raise UserError(f"{path}: the embedding of {bad} is not finite; make it again with task=embed")
    off = (emb.norm(dim=1) - 1).abs() > 1e-3
    if off.any():
        raise UserError(
            f"{path}: the embedding of {ids[int(off.nonzero()[0])]} has not length 1; make it again with task=embed"
        )
    return ids, emb
