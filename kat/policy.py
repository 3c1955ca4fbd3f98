"""Log-probabilities of completions under the policy and its frozen reference; frozen blocks are read once, if ever.

The reference is the policy with the weights that it began with: copies of the trainable ones, which stand in for
them (`torch.func.functional_call`). No second model is loaded, whatever is trained.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kat.grpo import token_logps
from kat.rollout import Completion
from latentwire.harness.progress import say


@dataclass(frozen=True)
class Row:
    """A prompt of P tokens with one of its completions."""

    prompt: tuple[int, ...]
    completion: Completion

    @property
    def size(self) -> int:
        """Positions that it takes: the last token of the completion is not read."""
        return len(self.prompt) + len(self.completion.ids) - 1


class Policy:
    """A model in training, with what it was at the start.

    Args:
        model: A causal LM of transformers, in evaluation mode (dropout would make the ratio noisy). Its trainable
            parameters are those that require a gradient.
        parameters: The trainable parameters by name.
        temperature: Of the sampling; divides the logits.
        reference: Whether the reference is kept.
    """

    def __init__(self, model: Any, parameters: dict[str, nn.Parameter], temperature: float, *, reference: bool) -> None:
        self.model, self.parameters, self.temperature = model, parameters, temperature
        self.reference = {name: p.detach().clone() for name, p in parameters.items()} if reference else None
        self.frozen = frozen_blocks(model)

    @property
    def tap(self) -> nn.Module | None:
        """The last frozen block: what it returned while sampling is all that is needed of the frozen part."""
        return self.frozen[-1] if self.frozen else None

    def logps(self, rows: Sequence[Row]) -> Tensor:
        """Return the log-probability of each token, with gradient, (B, C), padded on the right."""
        return self._logps(rows, None)

    @torch.no_grad()
    def reference_logps(self, rows: Sequence[Row]) -> Tensor:
        """Return the log-probability of each token under the reference, (B, C), padded on the right."""
        assert self.reference is not None
        return self._logps(rows, self.reference)

    def _logps(self, rows: Sequence[Row], weights: dict[str, Tensor] | None) -> Tensor:
        device = self.model.device
        before = max(len(row.prompt) for row in rows)  # P
        after = max(len(row.completion.ids) for row in rows)  # C
        width = before + after - 1
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        tokens = torch.zeros(len(rows), after, dtype=torch.long)
        for i, row in enumerate(rows):
            start = before - len(row.prompt)
            read = [*row.prompt, *row.completion.ids[:-1]]
            ids[i, start : start + len(read)] = torch.tensor(read)
            mask[i, start : start + len(read)] = 1
            tokens[i, : len(row.completion.ids)] = torch.tensor(row.completion.ids)
        padding = before - torch.tensor([len(row.prompt) for row in rows])
        inputs = {
            "input_ids": ids.to(device),
            "attention_mask": mask.to(device),
            "position_ids": (torch.arange(width) - padding[:, None]).clamp_min(0).to(device),
            "use_cache": False,
            # a tensor: a slice would give the output head strided rows, many times slower
            "logits_to_keep": torch.arange(width - after, width, device=device),
        }
        with _given(self.frozen, self._states(rows, before, width)):
            found = self.model(**inputs) if weights is None else functional_call(self.model, weights, (), inputs)
        return token_logps(found.logits, tokens.to(device), self.temperature)

    def _states(self, rows: Sequence[Row], before: int, width: int) -> Tensor | None:
        """Lay out the outputs of the last frozen block, as they were while sampling, (B, P + C - 1, D)."""
        if not self.frozen or any(row.completion.states is None for row in rows):
            return None
        first = rows[0].completion.states
        assert first is not None
        states = first.new_zeros(len(rows), width, first.shape[-1])
        for i, row in enumerate(rows):
            found = row.completion.states
            assert found is not None
            start = before - len(row.prompt)
            states[i, start : start + len(found)] = found
        return states


def frozen_blocks(model: Any) -> list[nn.Module]:
    """Return the blocks at the bottom of a decoder that no gradient reaches, if what lies above them can do alone.

    Empty where the embeddings or the first block are trained, or where the model is no plain stack of blocks; whether
    the blocks above, given the states between, return what the whole model returns, is tried out.
    """
    decoder = model.get_decoder()
    depth = model.config.get_text_config().num_hidden_layers
    stack = next((m for m in decoder.children() if isinstance(m, nn.ModuleList) and len(m) == depth), None)
    if stack is None or any(p.requires_grad for p in model.get_input_embeddings().parameters()):
        return []
    frozen = list(itertools.takewhile(lambda block: not any(p.requires_grad for p in block.parameters()), stack))
    return frozen if frozen and _can_do_alone(model, frozen) else []


@torch.no_grad()
def _can_do_alone(model: Any, frozen: list[nn.Module]) -> bool:
    """Tell whether the model gives the same logits when its frozen blocks are replaced by what they returned."""
    ids = torch.arange(1, 6, device=model.device)[None]
    returned: list[Any] = []
    handle = frozen[-1].register_forward_hook(lambda _, __, output: returned.append(output))
    try:
        expected = model(input_ids=ids, use_cache=False).logits
    finally:
        handle.remove()
    agrees = False
    if len(returned) == 1 and isinstance(returned[0], Tensor):
        with _given(frozen, returned[0]):
            found = model(input_ids=ids, use_cache=False).logits
        agrees = torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    if not agrees:
        say(f"note: the frozen blocks of {type(model).__name__} cannot be left out; they are computed every time")
    return agrees


@contextmanager
def _given(frozen: list[nn.Module], states: Tensor | None) -> Iterator[None]:
    """Let the frozen blocks compute nothing: the last of them returns `states`, the others their input."""
    if states is None:
        yield
        return
    passes: list[Any] = [lambda hidden, *_, **__: hidden] * (len(frozen) - 1) + [lambda *_, **__: states]
    for block, forward in zip(frozen, passes, strict=True):
        block.forward = forward
    try:
        yield
    finally:
        for block in frozen:
            del block.forward


def micro_batches(sizes: Sequence[tuple[int, int]], batch_tokens: int) -> list[list[int]]:
    """Group rows so that no micro-batch holds more than `batch_tokens` positions, padding too.

    Args:
        sizes: Of each row, tokens of its prompt and of its completion.
        batch_tokens: Rows times positions of the widest, at most; a row that is wider gets a micro-batch of its own.

    Returns:
        Indices into `sizes`. Rows of long completions stand together, so that little is padding.
    """
    batches: list[list[int]] = []
    widest = (0, 0)
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i][1], -sizes[i][0], i)):
        width = max(widest[0], sizes[index][0]), max(widest[1], sizes[index][1])
        if batches and (len(batches[-1]) + 1) * sum(width) <= batch_tokens:
            batches[-1].append(index)
            widest = width
        else:
            batches.append([index])
            widest = sizes[index]
    return batches
