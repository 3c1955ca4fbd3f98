"""Densities of prompts from a model's own embeddings. Main entry: `density_of()`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kat.data.prompts import normalise, render_conversation
from kat.density.diagnostics import diagnose_weights
from kat.density.estimate import Density, DensitySpec, estimate
from kat.density.gates import measure_gates
from kat.embedding.pooling import embed_hidden
from latentwire.harness.errors import UserError

PromptText = str | Sequence[Mapping[str, str]]  # a text, or messages with role and content


def density_of(
    prompts: Sequence[PromptText],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    spec: DensitySpec,
    *,
    batch_tokens: int,
    seed: int,
) -> Density:
    """Return the densities and sampling weights of prompts, from embeddings of a model.

    Args:
        prompts: N texts or lists of messages.
        model: A causal LM of transformers. It runs in evaluation mode and then returns to its former mode.
        tokenizer: Its tokenizer.
        spec: The settings of the density and the weights.
        batch_tokens: The largest number of positions in one forward pass.
        seed: The seed of the approximate search, if it is used.

    Raises:
        UserError: A prompt has no text, there are too few prompts, or a setting is out of range.

    Warns:
        UserWarning: The weights do nothing, explode or fail a gate, see `kat.density.diagnostics.diagnose_weights`.
    """
    training = model.training
    model.train(False)
    try:
        emb = embed_hidden(model, tokenizer, [_text(i, prompt) for i, prompt in enumerate(prompts)], batch_tokens)
    finally:
        model.train(training)
    found = estimate(emb, spec, seed)
    gates = measure_gates(emb, spec, found, seed)
    diagnostics = diagnose_weights(
        found.density, found.weights, [""] * len(emb), gates=gates, weights_error=found.weights_error
    )
    for message in diagnostics["warnings"]:
        warnings.warn(message, stacklevel=3)
    return found


def _text(row: int, prompt: PromptText) -> str:
    """Return a prompt as text, in the same form as task=embed."""
    given = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    try:
        messages = normalise(given)
        text = render_conversation(messages)
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"prompt {row} is {type(prompt).__name__}: must be a text or a list of messages with role and content; "
            "give data_set['prompt']"
        ) from error
    if not any(message["content"] for message in messages):
        raise UserError(f"prompt {row} is blank: it has no text to embed; remove it")
    return text
