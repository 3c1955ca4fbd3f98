"""Embeddings of texts (N, D) as rows of length 1, pooled over the real tokens. Main entry: `embed_texts()`.

An embedding depends only on its text, up to the last bits, which change with the shape of the batch. A text that
occurs several times is therefore embedded once, so its copies are equal to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from latentwire.harness.errors import UserError
from latentwire.lm.batching import largest_first


class Embedder(Protocol):
    """An object that turns texts into vectors."""

    @property
    def max_tokens(self) -> int:
        """Return the length of the longest text that can be embedded, in tokens."""

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text."""

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return one unit row for each text of one batch: (B, D) float32 on the CPU."""


class HiddenEmbedder:
    """An embedder that averages the final hidden states, the input of the output head, over the real tokens.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model, tokenizer
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)  # None for recurrent models
        self.max_tokens = int(tokenizer.model_max_length if limit is None else limit)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(list(texts), verbose=False)["input_ids"] if texts else []
        return ids

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, including special tokens."""
        return [len(ids) for ids in self._encode(texts)]

    @torch.no_grad()
    def pooled(self, texts: Sequence[str]) -> Tensor:
        """Return the mean final hidden state of each text: (B, D) float32 on the model's device."""
        rows = self._encode(texts)
        width = max(len(row) for row in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)  # (B, T), padded on the right
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
            mask[i, : len(row)] = 1
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        hidden = self.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        is_token = mask.unsqueeze(-1).float()  # (B, T, 1)
        # A product with 0 is not enough: some attention kernels give NaN at padding.
        kept = torch.where(is_token > 0, hidden.float(), 0.0)
        return kept.sum(dim=1) / is_token.sum(dim=1)

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return one unit row for each text of one batch: (B, D) float32 on the CPU."""
        return unit_rows(self.pooled(texts))


class LogitsEmbedder:
    """An embedder that averages the logits over the real tokens, by default at the hidden size.

    Logits are linear in the final hidden state, so mean(W h) = W mean(h). With S the symmetric square root of W'W,
    S mean(h) has exactly the same inner products as the vocabulary-sized W mean(h). S is the only symmetric factor of
    W'W without a negative eigenvalue, so rows from different machines stay comparable. A bias of the head is an extra
    column of W, with an extra entry 1 in h. A common factor of all logits does not change unit rows. A model with any
    other step between W h and the logits, such as a soft cap, is rejected.

    Args:
        hidden: The embedder that computes mean(h).
        full: Whether to return the vocabulary-sized vectors, (B, V).

    Raises:
        UserError: The model's logits are not linear in its final hidden states.
    """

    def __init__(self, hidden: HiddenEmbedder, full: bool = False) -> None:
        self.hidden, self.max_tokens = hidden, hidden.max_tokens
        head: object = cast(Any, hidden.model).get_output_embeddings()  # transformers does not type it
        if head is None or not isinstance(weight := getattr(head, "weight", None), Tensor):
            raise UserError("embedder=logits: the model has no output head with a weight matrix; use embedder=hidden")
        bias = getattr(head, "bias", None)
        self.has_bias = isinstance(bias, Tensor)
        matrix = weight.detach() if not isinstance(bias, Tensor) else torch.cat([weight, bias[:, None]], dim=1).detach()
        _check_linear(hidden.model, matrix, self.has_bias)
        self.map = matrix.float() if full else square_root(matrix).to(weight.device)  # (V or D, D)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, including special tokens."""
        return self.hidden.lengths(texts)

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return one unit row for each text of one batch: (B, D) or (B, V) float32 on the CPU."""
        pooled = self.hidden.pooled(texts)
        if self.has_bias:
            pooled = functional.pad(pooled, (0, 1), value=1.0)
        return unit_rows(pooled @ self.map.T)


def square_root(matrix: Tensor, block: int = 8192) -> Tensor:
    """Return the symmetric square root of W'W, computed in float64.

    Args:
        matrix: W, (V, D).
        block: The number of rows of W that are processed at a time.

    Returns:
        S with S S = W'W, (D, D) float32.
    """
    gram = torch.zeros(matrix.shape[1], matrix.shape[1], dtype=torch.float64)
    for rows in torch.split(matrix, block):
        part = rows.cpu().double()
        gram += part.T @ part
    values, vectors = torch.linalg.eigh(gram)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root.float()


@torch.no_grad()
def _check_linear(model: PreTrainedModel, matrix: Tensor, has_bias: bool) -> None:
    """Check on up to 16 tokens that a model's logits are a multiple of W h + b; raise UserError otherwise."""
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
            f"embedder=logits: this model's logits are not linear in its final hidden states (difference "
            f"{difference:.1%}, for instance because of a soft cap), so they cannot be pooled; use embedder=hidden"
        )


def unit_rows(vectors: Tensor) -> Tensor:
    """Return vectors divided by their lengths: (B, D) -> (B, D) float32 on the CPU.

    Raises:
        UserError: A row is zero or not finite.
    """
    vectors = vectors.float().cpu()
    norms = vectors.norm(dim=1, keepdim=True)
    if not bool(torch.isfinite(norms).all()):
        raise UserError("the model gave NaN or infinite values; try dtype=float32, or another model")
    if not bool((norms > 0).all()):
        raise UserError("the model gave an embedding of zeros, which has no direction; use another embedder or model")
    rows: Tensor = vectors / norms
    return rows


ENOUGH_TOKENS = 1024  # real tokens in a batch that make its matrix products efficient
MOST_PADDING = 1 / 16  # largest share of padding in a batch with enough tokens


def plan_embedding_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Return batches of texts of similar length, longest first.

    Unlike in `latentwire.lm.batching.pack_padded`, a batch also ends when shorter texts would add too much padding. The
    batches depend only on the lengths and the budget, not on the number of processes. A text that exceeds the budget
    gets its own batch.

    Args:
        lengths: The number of tokens of each text.
        batch_tokens: The largest number of positions in a batch, including padding.

    Returns:
        Indices into `lengths`, batch by batch.

    Raises:
        UserError: `batch_tokens` is below 1.
    """
    if batch_tokens < 1:
        raise UserError(f"batch_tokens={batch_tokens}: must be at least 1")
    batches: list[list[int]] = []
    tokens = 0  # real tokens in the last batch
    for index in largest_first(lengths):
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


def embed_texts(embedder: Embedder, texts: Sequence[str], batch_tokens: int = 8192) -> Tensor:
    """Return the embeddings of texts, computed in batches of similar length. No text is cut.

    Args:
        embedder: The embedder.
        texts: N texts, at least one. Each different text is embedded once.
        batch_tokens: The largest number of positions (rows x longest text) in a batch.

    Returns:
        Rows of length 1 in the order of the texts, (N, D) float32 on the CPU.

    Raises:
        UserError: The list of texts is empty, or a text is empty or too long for the model.
    """
    if not texts:
        raise UserError("no text to embed; give at least one")
    row_by_text: dict[str, int] = {}
    row_of = [row_by_text.setdefault(text, len(row_by_text)) for text in texts]
    distinct = list(row_by_text)
    lengths = embedder.lengths(distinct)
    for text, length in zip(distinct, lengths, strict=True):
        if length == 0:
            raise UserError(f"text {texts.index(text)} has no tokens; remove it")
        if length > embedder.max_tokens:
            raise UserError(
                f"text {texts.index(text)} has {length} tokens, but the model reads at most {embedder.max_tokens}; "
                "remove or shorten it, or use a model with a longer context"
            )
    rows: Tensor | None = None
    for batch in plan_embedding_batches(lengths, batch_tokens):
        vectors = embedder.embed([distinct[i] for i in batch])
        if rows is None:
            rows = torch.empty(len(distinct), vectors.shape[1])
        rows[batch] = vectors
    assert rows is not None
    return rows[row_of]


def embed_hidden(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch_tokens: int = 8192
) -> Tensor:
    """Return the mean final hidden state of each text over its real tokens, at length 1.

    Args:
        model: A causal language model, in evaluation mode.
        tokenizer: Its tokenizer.
        texts: N texts.
        batch_tokens: The largest number of positions (rows x longest text) in a batch.

    Returns:
        Rows of length 1 in the order of the texts, (N, D) float32 on the CPU.

    Raises:
        UserError: The texts cannot be embedded, see `embed_texts`.

    >>> from latentwire import load_model_by_name
    >>> lm = load_model_by_name("tiny_random")
    >>> emb = embed_hidden(lm.model, lm.tokenizer, ["Why is the sky blue?", "Why?"])
    >>> emb.shape, bool(torch.allclose(emb.norm(dim=1), torch.ones(2)))
    (torch.Size([2, 64]), True)
    """
    return embed_texts(HiddenEmbedder(model, tokenizer), texts, batch_tokens)
