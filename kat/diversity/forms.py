"""Completions of all checkpoints with their embeddings, as sampled and with lengths matched. Main entry: `forms_of()`.

A form is "raw", as sampled, or "matched": each completion is cut to the shortest one of all checkpoints with the same
prompt and number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from kat.diversity.bleu import Tokens
from kat.diversity.comparison import Samples, common_lengths, cut
from kat.diversity.samples import SampledText
from kat.embedding.pooling import Embedder, embed_texts

Forms = dict[str, list[Samples]]  # the completions of every checkpoint, by form
Texts = list[list[str]]  # by prompt and number


def forms_of(
    rows: Sequence[Sequence[Sequence[SampledText]]],
    tokenizer: PreTrainedTokenizerBase,
    embedder: Embedder,
    batch_tokens: int,
) -> Forms:
    """Return the embedded completions of every model in both forms.

    Args:
        rows: The completions by model, prompt and number.
        tokenizer: The common tokenizer of the models.
        embedder: The embedder of the texts.
        batch_tokens: The largest number of positions embedded at a time.
    """
    ids: list[list[list[Tokens]]] = [[[tuple(row["ids"]) for row in prompt] for prompt in model] for model in rows]
    lengths = common_lengths(ids)
    texts: dict[str, list[Texts]] = {
        "raw": [[[row["text"] for row in prompt] for prompt in model] for model in rows],
        "matched": [_cut_texts(model, lengths, tokenizer) for model in rows],
    }
    distinct = dict.fromkeys(text for form in texts.values() for model in form for prompt in model for text in prompt)
    row_of = {text: number for number, text in enumerate(text for text in distinct if text.strip())}
    emb = embed_texts(embedder, list(row_of), batch_tokens).numpy() if row_of else np.zeros((1, 1), dtype=np.float32)
    forms: Forms = {}
    for form, models in texts.items():
        forms[form] = []
        for own, model, strings in zip(ids, rows, models, strict=True):
            index = np.array([[row_of.get(text, -1) for text in prompt] for prompt in strings])  # (M, K)
            forms[form].append(
                Samples(
                    ids=own if form == "raw" else cut(own, lengths),
                    strings=strings,
                    emb=emb[index].astype(np.float64),
                    empty=index < 0,
                    entropy=_entropies(model, None if form == "raw" else lengths),
                    ended=[[row["ended"] for row in prompt] for prompt in model],
                )
            )
    return forms


def _cut_texts(
    model: Sequence[Sequence[SampledText]], lengths: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase
) -> Texts:
    """Return the texts of completions that are cut to their lengths."""
    return [
        [
            row["text"] if len(row["ids"]) == n else str(tokenizer.decode(row["ids"][:n], skip_special_tokens=True))
            for row, n in zip(prompt, prompt_lengths, strict=True)
        ]
        for prompt, prompt_lengths in zip(model, lengths, strict=True)
    ]


def _entropies(
    model: Sequence[Sequence[SampledText]], lengths: Sequence[Sequence[int]] | None
) -> list[list[Sequence[float]]]:
    """Return the entropies of the drawn tokens, cut to lengths if they are given."""
    if lengths is None:
        return [[row["entropy"] for row in prompt] for prompt in model]
    return [
        [row["entropy"][:n] for row, n in zip(prompt, prompt_lengths, strict=True)]
        for prompt, prompt_lengths in zip(model, lengths, strict=True)
    ]
