"""Texts -> unit-norm embeddings (N, D): pooling over real tokens, batches by length, and the file embeddings.pt.

An embedding depends on its text alone, up to the last bits, which shift with the shape of its batch; so a text that
occurs several times is embedded once, and its copies are equal to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from latentwire.harness.errors import UserError


class Embedder(Protocol):
    """What turns texts into vectors."""

    @property
    def max_tokens(self) -> int:
        """Longest text it can read, in tokens."""

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text."""

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return one unit row for each text of one batch: (B, D) float32 on the CPU."""


class HiddenEmbedder:
    """Mean over real tokens of the final hidden states, those that the output head reads.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model, tokenizer
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)  # recurrent models have none
        self.max_tokens = int(tokenizer.model_max_length if limit is None else limit)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(list(texts), verbose=False)["input_ids"] if texts else []
        return ids

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, special ones included."""
        return [len(ids) for ids in self._encode(texts)]

    @torch.no_grad()
    def pooled(self, texts: Sequence[str]) -> Tensor:
        """Return the mean final hidden state of each text: (B, D) float32 on the model's device."""
        rows = self._encode(texts)
        width = max(len(row) for row in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)  # (B, T); padded on the right
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
            mask[i, : len(row)] = 1
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        hidden = self.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        weights = mask.unsqueeze(-1).float()  # (B, T, 1)
        # where() and not only times 0: what stands at padding may be NaN in some attention kernels.
        kept = torch.where(weights > 0, hidden.float(), 0.0)
        return kept.sum(dim=1) / weights.sum(dim=1)

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return one unit row for each text of one batch: (B, D) float32 on the CPU."""
        return unit_rows(self.pooled(texts))


class LogitsEmbedder:
    """Mean over real tokens of the logits, by default at hidden size.

    Logits are linear in the final hidden state, so mean(W h) = W mean(h). With S the symmetric square root of W'W,
    S mean(h) has the same inner products as the vocabulary-sized W mean(h), exactly. Among the factors of W'W it is
    the only symmetric one with no negative eigenvalue, so rows computed elsewhere stay comparable. A bias of the head
    is one more column of W, and a constant one more entry of h. A common factor of all logits does not matter to unit
    rows; anything else between W h and the logits (a soft cap) is refused.

    Args:
        hidden: The embedder that gives mean(h).
        full: Return the vocabulary-sized vector, (B, V), instead.

    Raises:
        UserError: The model's logits are not linear in its final hidden states.
    """

    def __init__(self, hidden: HiddenEmbedder, full: bool = False) -> None:
        self.hidden, self.max_tokens = hidden, hidden.max_tokens
        head = hidden.model.get_output_embeddings()
        if head is None or not isinstance(weight := getattr(head, "weight", None), Tensor):
            raise UserError("embedder=logits: the model has no output head with a weight matrix; use embedder=hidden")
        bias = getattr(head, "bias", None)
        self.has_bias = isinstance(bias, Tensor)
        matrix = weight.detach() if not isinstance(bias, Tensor) else torch.cat([weight, bias[:, None]], dim=1).detach()
        _check_linear(hidden.model, matrix, self.has_bias)
        self.map = matrix.float() if full else square_root(matrix).to(weight.device)  # (V or D, D)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, special ones included."""
        return self.hidden.lengths(texts)

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return one unit row for each text of one batch: (B, D) or (B, V) float32 on the CPU."""
        pooled = self.hidden.pooled(texts)
        if self.has_bias:
            pooled = functional.pad(pooled, (0, 1), value=1.0)
        return unit_rows(pooled @ self.map.T)


def square_root(matrix: Tensor, block: int = 8192) -> Tensor:
    """Return the symmetric S with S S = W'W, for W (V, D): (D, D) float32, computed in float64."""
    gram = torch.zeros(matrix.shape[1], matrix.shape[1], dtype=torch.float64)
    for rows in matrix.split(block):
        part = rows.cpu().double()
        gram += part.T @ part
    values, vectors = torch.linalg.eigh(gram)
    return ((vectors * values.clamp(min=0).sqrt()) @ vectors.T).float()


@torch.no_grad()
def _check_linear(model: PreTrainedModel, matrix: Tensor, has_bias: bool) -> None:
    """Refuse a model whose logits are not a multiple of W h + b: tried on a handful of its tokens."""
    vocabulary = len(matrix)
    ids = torch.arange(min(16, vocabulary), device=model.device)[None] * (vocabulary // min(16, vocabulary))
    output = model(input_ids=ids, output_hidden_states=False, use_cache=False)
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0].float()  # (T, D)
    logits = output.logits[0].float()  # (T, V)
    if has_bias:
        hidden = functional.pad(hidden, (0, 1), value=1.0)
    expected = hidden @ matrix.float().T
    scale = (logits * expected).sum() / expected.square().sum()
    difference = ((logits - scale * expected).norm() / logits.norm()).item()
    tolerance = 1e-3 if model.dtype == torch.float32 else 3e-2
    if (
        not difference <= tolerance
        or scale <= 0
        or getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    ):
        raise UserError(
            f"embedder=logits: this model's logits are not linear in its final hidden states (they differ by "
            f"{difference:.1%}; a soft cap does that), so they cannot be pooled there; use embedder=hidden"
        )


def unit_rows(vectors: Tensor) -> Tensor:
    """Return rows of length 1: (B, D) -> (B, D) float32 on the CPU.

    Raises:
        UserError: A row is not finite, or zero.
    """
    vectors = vectors.float().cpu()
    norms = vectors.norm(dim=1, keepdim=True)
    if not bool(torch.isfinite(norms).all()):
        raise UserError("the model gave NaN or infinite values; try dtype=float32, or another model")
    if not bool((norms > 0).all()):
        raise UserError("the model gave an embedding of zeros, which has no direction; use another embedder or model")
    return vectors / norms


ENOUGH_TOKENS = 1024  # real tokens that keep a batch's matrix products busy
MOST_PADDING = 1 / 16  # of its positions; a batch with enough tokens ends before it


def plan(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Group texts of similar length, longest first; no batch has more than `batch_tokens` positions, padding too.

    A batch also ends where shorter texts would fill it with padding. The plan depends on the lengths alone, whatever
    the number of processes. A text too long for the budget gets a batch of its own.

    Returns:
        Indices into `lengths`, batch by batch.
    """
    if batch_tokens < 1:
        raise UserError(f"batch_tokens={batch_tokens}: must be at least 1")
    batches: list[list[int]] = []
    tokens = 0  # real ones of the last batch
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches:
            positions = (len(batches[-1]) + 1) * lengths[batches[-1][0]]
            padding = positions - tokens - lengths[index]
            if positions <= batch_tokens and (tokens < ENOUGH_TOKENS or padding <= MOST_PADDING * positions):
                batches[-1].append(index)
                tokens += lengths[index]
                continue
        batches.append([index])
        tokens = lengths[index]
    return batches


def embed_texts(
    embedder: Embedder,
    texts: Sequence[str],
    batch_tokens: int = 8192,
) -> Tensor:
    """Embed texts in batches of similar length, in their own order: (N, D) float32 unit rows on the CPU.

    Args:
        embedder: What turns a batch into vectors.
        texts: At least one; each different text is embedded once.
        batch_tokens: Positions (rows x longest) embedded at a time.

    Raises:
        UserError: No texts, an empty one, or one that the model cannot read whole; nothing is cut off.
    """
    if not texts:
        raise UserError("there is no text to embed")
    numbers: dict[str, int] = {}
    row_of = [numbers.setdefault(text, len(numbers)) for text in texts]
    distinct = list(numbers)
    lengths = embedder.lengths(distinct)
    for text, length in zip(distinct, lengths, strict=True):
        if length == 0:
            raise UserError(f"text {texts.index(text)} has no tokens; remove it")
        if length > embedder.max_tokens:
            raise UserError(
                f"text {texts.index(text)} has {length} tokens, but the model reads {embedder.max_tokens} at most; "
                "remove or shorten it, or use a model with a longer context"
            )
    rows: Tensor | None = None
    for batch in plan(lengths, batch_tokens):
        vectors = embedder.embed([distinct[i] for i in batch])
        if rows is None:
            rows = torch.empty(len(distinct), vectors.shape[1])
        rows[batch] = vectors
    assert rows is not None
    return rows[row_of]


def embed_hidden(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch_tokens: int = 8192
) -> Tensor:
    """Return the mean final hidden state of each text over its real tokens: (N, D) float32 unit rows on the CPU.

    Args:
        model: A causal language model, in evaluation mode.
        tokenizer: Its tokenizer.
        texts: Texts to embed.
        batch_tokens: Positions (rows x longest) embedded at a time.

    Raises:
        UserError: As `embed_texts` says.
    """
    return embed_texts(HiddenEmbedder(model, tokenizer), texts, batch_tokens)
