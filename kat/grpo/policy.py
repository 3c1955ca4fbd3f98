"""Log-probabilities of completions under the policy and its frozen reference; frozen blocks are read once, if ever.

A prompt is read once for all its completions: they stand behind it in one line, each sees the prompt and itself, and
its positions go on from the prompt's end. The numbers are those of the rows one by one, to rounding.

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
from torch.nn.utils.rnn import pad_sequence

from kat.grpo.objective import per_token_logps
from kat.grpo.rollout import Completion
from kat.training.tree_mask import tree_mask
from latentwire.harness.progress import log

LINE = 2048  # positions of a line, at most: attention costs the square of it


@dataclass(frozen=True)
class PolicyRow:
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

    def logps(self, rows: Sequence[PolicyRow]) -> Tensor:
        """Return the log-probability of each token, with gradient, (B, C), padded on the right."""
        return self._logps(rows, None)

    @torch.no_grad()
    def reference_logps(self, rows: Sequence[PolicyRow]) -> Tensor:
        """Return the log-probability of each token under the reference, (B, C), padded on the right."""
        assert self.reference is not None
        return self._logps(rows, self.reference)

    def _logps(self, rows: Sequence[PolicyRow], weights: dict[str, Tensor] | None) -> Tensor:
        device = self.model.device
        line = lay_out(rows)
        inputs = {
            "input_ids": line.ids[None].to(device),
            "attention_mask": tree_mask(line.branch, self.model.dtype, line.family)[None, None].to(device),
            "position_ids": line.positions[None].to(device),
            "use_cache": False,
            # a tensor: a slice would give the output head strided rows, many times slower
            "logits_to_keep": line.reads.to(device),
        }
        with _given(self.frozen, self._states(line, rows)):
            found = self.model(**inputs) if weights is None else functional_call(self.model, weights, (), inputs)
        tokens = torch.tensor([token for row in rows for token in row.completion.ids], device=device)
        logps = per_token_logps(found.logits, tokens[None], self.temperature)[0]  # (S,)
        return pad_sequence(logps.split([len(row.completion.ids) for row in rows]), batch_first=True)

    def _states(self, line: PackedSequence, rows: Sequence[PolicyRow]) -> Tensor | None:
        """Lay out the outputs of the last frozen block, as they were while sampling, (1, T, D)."""
        if not self.frozen or any(row.completion.states is None for row in rows):
            return None
        parts: list[Tensor] = []
        for number, start in line.pieces:
            states = rows[number].completion.states
            assert states is not None
            parts.append(states[: len(rows[number].prompt)] if start == 0 else states[start:])
        return torch.cat(parts)[None]


@dataclass(frozen=True)
class PackedSequence:
    """Rows in one line of T positions: each prompt, once, then what follows it."""

    ids: Tensor  # (T,)
    positions: Tensor  # (T,), of a token in its own row
    family: Tensor  # (T,), which prompt a token belongs to
    branch: Tensor  # (T,), 0 for a prompt's token, else which of its completions
    reads: Tensor  # (S,), for each token of each completion, row by row: where its logits are
    pieces: list[tuple[int, int]]  # what the line is made of: (row, 0) its prompt, (row, P) what it reads after that


def lay_out(rows: Sequence[PolicyRow]) -> PackedSequence:
    """Lay rows out in one line, the completions of a prompt behind it."""
    families: dict[tuple[int, ...], list[int]] = {}
    for number, row in enumerate(rows):
        families.setdefault(row.prompt, []).append(number)
    ids: list[int] = []
    positions: list[int] = []
    family: list[int] = []
    branch: list[int] = []  # 0: the prompt
    pieces: list[tuple[int, int]] = []
    reads: list[list[int]] = [[] for _ in rows]
    for which, (prompt, members) in enumerate(families.items()):
        last = len(ids) + len(prompt) - 1  # gives the first token of each completion
        for number, part in enumerate([None, *members]):
            read = prompt if part is None else rows[part].completion.ids[:-1]
            start = 0 if part is None else len(prompt)
            pieces.append((members[0] if part is None else part, start))
            if part is not None:
                reads[part] = [last, *range(len(ids), len(ids) + len(read))]
            ids += read
            positions += range(start, start + len(read))
            family += [which] * len(read)
            branch += [number] * len(read)
    wanted = [position for row in reads for position in row]
    made = {"ids": ids, "positions": positions, "family": family, "branch": branch, "reads": wanted}
    return PackedSequence(**{name: torch.tensor(column) for name, column in made.items()}, pieces=pieces)


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
        log(f"note: the frozen blocks of {type(model).__name__} cannot be left out; they are computed every time")
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


def micro_batches(rows: Sequence[PolicyRow], batch_tokens: int) -> list[list[int]]:
    """Group rows so that no line of a micro-batch has more than `batch_tokens` positions, rows of a prompt together.

    Args:
        rows: In any order.
        batch_tokens: Positions of a line, at most, and never more than LINE; a row that is longer gets a micro-batch of
            its own.

    Returns:
        Indices into `rows`.
    """
    families: dict[tuple[int, ...], list[int]] = {}
    for index, row in enumerate(rows):
        families.setdefault(row.prompt, []).append(index)
    batches: list[list[int]] = []
    most = size = min(batch_tokens, LINE)
    for prompt, members in families.items():
        starts = True  # the prompt does not stand in the line yet
        for index in members:
            more = len(rows[index].completion.ids) - 1
            if not batches or size + more + starts * len(prompt) > most:
                batches.append([])
                size, starts = 0, True
            batches[-1].append(index)
            size += more + starts * len(prompt)
            starts = False
    return batches
