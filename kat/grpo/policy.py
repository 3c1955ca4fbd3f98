"""Log-probabilities of completions under the policy and the reference policy. Main entry: `Policy`.

A prompt is computed once for all its completions. They follow it in one packed sequence; each attends to the prompt and
itself, and its positions continue the prompt's. The results equal, up to rounding, the results of separate rows.

The reference policy shares the frozen weights with the policy. It uses copies of the initial trainable weights
(`torch.func.functional_call`), so no second model is loaded. `sync_ref_model` moves it towards the policy. Frozen
blocks at the bottom are computed only while sampling.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import pad_sequence

from kat.grpo.objective import per_token_entropy, per_token_logps
from kat.grpo.rollout import Completion
from kat.training.tree_mask import tree_mask
from kat.training.tuning import find_blocks
from latentwire.harness.progress import log

MAX_PACKED_TOKENS = 2048  # maximum length of a packed sequence; attention costs its square


@dataclass(frozen=True)
class PolicyRow:
    """A prompt with one of its completions."""

    prompt: tuple[int, ...]  # P token ids
    completion: Completion

    @property
    def size(self) -> int:
        """Number of positions; the last token of the completion is predicted, but not an input."""
        return len(self.prompt) + len(self.completion.ids) - 1


class Policy:
    """A model in training, with its initial weights as the reference policy.

    Attributes:
        ref_parameters: The trainable weights of the reference policy by name; None without one.
        start_parameters: The trainable weights before training; None without a reference policy.

    Args:
        model: A causal LM of transformers in evaluation mode, as dropout would make the probability ratio noisy. Its
            trainable parameters are the ones that require a gradient.
        parameters: The trainable parameters by name.
        temperature: Sampling temperature, which divides the logits.
        ref_model: Whether to keep the initial weights for `ref_logps`.
        moves: Whether `sync_ref_model` will change the reference, so that `start_parameters` need copies of their own.
    """

    def __init__(
        self,
        model: Any,
        parameters: dict[str, nn.Parameter],
        temperature: float,
        *,
        ref_model: bool,
        moves: bool = False,
    ) -> None:
        self.model, self.parameters, self.temperature = model, parameters, temperature
        self.ref_parameters = {name: p.detach().clone() for name, p in parameters.items()} if ref_model else None
        self.start_parameters = self.ref_parameters
        if moves and self.ref_parameters is not None:
            self.start_parameters = {name: p.clone() for name, p in self.ref_parameters.items()}
        self.frozen = frozen_blocks(model)

    @property
    def hidden_state_hook(self) -> nn.Module | None:
        """The last frozen block, or None. Its outputs, recorded in sampling, replace the frozen blocks."""
        return self.frozen[-1] if self.frozen else None

    def logps(self, rows: Sequence[PolicyRow]) -> Tensor:
        """Return the log-probability of each token, (B, C) with gradient, padded on the right, in nats."""
        return self._logps(rows, None)

    def logps_and_entropy(self, rows: Sequence[PolicyRow]) -> tuple[Tensor, Tensor]:
        """Return the log-probability and the entropy of each token, (B, C) with gradient, as in `logps`."""
        logits = self._logits(rows, None)
        logps = per_token_logps(logits, self._tokens(rows), self.temperature)
        return _padded(logps[0], rows), _padded(per_token_entropy(logits, self.temperature)[0], rows)

    @torch.no_grad()
    def ref_logps(self, rows: Sequence[PolicyRow]) -> Tensor:
        """Return the log-probability of each token under the reference policy, (B, C), padded on the right, in nats."""
        assert self.ref_parameters is not None
        return self._logps(rows, self.ref_parameters)

    @torch.no_grad()
    def start_logps(self, rows: Sequence[PolicyRow]) -> Tensor:
        """Return the log-probability of each token under the policy before training, (B, C), as in `ref_logps`."""
        assert self.start_parameters is not None
        return self._logps(rows, self.start_parameters)

    @torch.no_grad()
    def sync_ref_model(self, mixup_alpha: float) -> None:
        """Move the reference towards the policy: reference = alpha policy + (1 - alpha) reference.

        Source: TR-DPO, Gorbatovski et al. 2024, arXiv 2404.09656.

        Args:
            mixup_alpha: Share of the policy, alpha; 1 copies it.
        """
        assert self.ref_parameters is not None and self.ref_parameters is not self.start_parameters
        for name, reference in self.ref_parameters.items():
            reference.mul_(1.0 - mixup_alpha).add_(self.parameters[name], alpha=mixup_alpha)

    def _logps(self, rows: Sequence[PolicyRow], parameters: dict[str, Tensor] | None) -> Tensor:
        logits = self._logits(rows, parameters)
        return _padded(per_token_logps(logits, self._tokens(rows), self.temperature)[0], rows)

    def _tokens(self, rows: Sequence[PolicyRow]) -> Tensor:
        """Return the tokens of all completions, row by row, (1, S)."""
        return torch.tensor([[token for row in rows for token in row.completion.ids]], device=self.model.device)

    def _logits(self, rows: Sequence[PolicyRow], parameters: dict[str, Tensor] | None) -> Tensor:
        """Return the logits of all completion tokens, row by row, (1, S, V)."""
        device = self.model.device
        packed = pack_rows(rows)
        inputs = {
            "input_ids": packed.ids[None].to(device),
            "attention_mask": tree_mask(packed.branch, self.model.dtype, packed.prompt_index)[None, None].to(device),
            "position_ids": packed.positions[None].to(device),
            "use_cache": False,
            # a tensor: a slice would give the output head strided rows, many times slower
            "logits_to_keep": packed.logit_positions.to(device),
        }
        with _skipping(self.frozen, self._states(packed, rows)):
            output = self.model(**inputs) if parameters is None else functional_call(self.model, parameters, (), inputs)
        logits: Tensor = output.logits
        return logits

    def _states(self, packed: PackedSequence, rows: Sequence[PolicyRow]) -> Tensor | None:
        """Return the outputs of the last frozen block for a packed sequence, as recorded while sampling, (1, T, D)."""
        if not self.frozen or any(row.completion.states is None for row in rows):
            return None
        parts: list[Tensor] = []
        for number, start in packed.pieces:
            states = rows[number].completion.states
            assert states is not None
            parts.append(states[: len(rows[number].prompt)] if start == 0 else states[start:])
        return torch.cat(parts)[None]


def _padded(values: Tensor, rows: Sequence[PolicyRow]) -> Tensor:
    """Return a value for each completion token, row by row, as a padded batch: (S,) -> (B, C)."""
    return pad_sequence(list(torch.split(values, [len(row.completion.ids) for row in rows])), batch_first=True)


@dataclass(frozen=True)
class PackedSequence:
    """Rows in one sequence of T positions: each prompt once, followed by its completions."""

    ids: Tensor  # (T,), token ids
    positions: Tensor  # (T,), position of each token in its own row
    prompt_index: Tensor  # (T,), index of each token's prompt
    branch: Tensor  # (T,), 0 in a prompt, else the number of the prompt's completion
    logit_positions: Tensor  # (S,), position of the logits of each completion token, row by row
    pieces: list[tuple[int, int]]  # parts of the sequence: (row, 0) is a prompt, (row, P) a row's completion


def _rows_by_prompt(rows: Sequence[PolicyRow]) -> dict[tuple[int, ...], list[int]]:
    """Return the indices of the rows of each prompt."""
    found: dict[tuple[int, ...], list[int]] = {}
    for index, row in enumerate(rows):
        found.setdefault(row.prompt, []).append(index)
    return found


def pack_rows(rows: Sequence[PolicyRow]) -> PackedSequence:
    """Return rows as one sequence, each prompt followed by its completions."""
    ids: list[int] = []
    positions: list[int] = []
    prompt_index: list[int] = []
    branch: list[int] = []
    pieces: list[tuple[int, int]] = []
    logit_positions: list[list[int]] = [[] for _ in rows]
    for index, (prompt, members) in enumerate(_rows_by_prompt(rows).items()):
        last = len(ids) + len(prompt) - 1  # has the logits of the first token of each completion
        for number, part in enumerate([None, *members]):
            tokens = prompt if part is None else rows[part].completion.ids[:-1]
            start = 0 if part is None else len(prompt)
            pieces.append((members[0] if part is None else part, start))
            if part is not None:
                logit_positions[part] = [last, *range(len(ids), len(ids) + len(tokens))]
            ids += tokens
            positions += range(start, start + len(tokens))
            prompt_index += [index] * len(tokens)
            branch += [number] * len(tokens)
    return PackedSequence(
        ids=torch.tensor(ids),
        positions=torch.tensor(positions),
        prompt_index=torch.tensor(prompt_index),
        branch=torch.tensor(branch),
        logit_positions=torch.tensor([position for row in logit_positions for position in row]),
        pieces=pieces,
    )


def frozen_blocks(model: Any) -> list[nn.Module]:
    """Return the frozen blocks at the bottom of a decoder, if recorded outputs can replace them.

    A trial run checks that the blocks above, given recorded states, return the logits of the whole model.

    Returns:
        The blocks; an empty list if the embeddings or the first block are trained, or if the check fails.
    """
    found = find_blocks(model.get_decoder())
    if found is None or any(p.requires_grad for p in model.get_input_embeddings().parameters()):
        return []
    frozen = list(itertools.takewhile(lambda block: not any(p.requires_grad for p in block.parameters()), found[1]))
    return frozen if frozen and _can_skip(model, frozen) else []


@torch.no_grad()
def _can_skip(model: Any, frozen: list[nn.Module]) -> bool:
    """Return whether the model gives the same logits when recorded outputs replace its frozen blocks."""
    ids = torch.arange(1, 6, device=model.device)[None]
    returned: list[object] = []
    handle = frozen[-1].register_forward_hook(lambda _, __, output: returned.append(output))
    try:
        expected = model(input_ids=ids, use_cache=False).logits
    finally:
        handle.remove()
    agrees = False
    if len(returned) == 1 and isinstance(returned[0], Tensor):
        with _skipping(frozen, returned[0]):
            logits = model(input_ids=ids, use_cache=False).logits
        agrees = torch.allclose(logits, expected, rtol=1e-4, atol=1e-4)
    if not agrees:
        log(f"note: the frozen blocks of {type(model).__name__} cannot be skipped, so they are computed every time")
    return agrees


@contextmanager
def _skipping(frozen: list[nn.Module], states: Tensor | None) -> Iterator[None]:
    """Skip the frozen blocks: the last one returns `states`, the others their input. None skips nothing."""
    if states is None:
        yield
        return
    passes: list[Callable[..., object]] = [lambda hidden, *_, **__: hidden] * (len(frozen) - 1)
    passes.append(lambda *_, **__: states)
    for block, forward in zip(frozen, passes, strict=True):
        block.forward = forward
    try:
        yield
    finally:
        for block in frozen:
            del block.forward


def micro_batches(rows: Sequence[PolicyRow], batch_tokens: int) -> list[list[int]]:
    """Group rows into micro-batches, each packed into one sequence; rows of a prompt stay together if they fit.

    Unlike in `latentwire.lm.batching.pack_joined`, a sequence holds several prompts, and each of them counts once.

    Args:
        rows: Rows in any order.
        batch_tokens: Maximum number of positions of a sequence, capped at MAX_PACKED_TOKENS. A longer row gets a
            micro-batch of its own.

    Returns:
        Indices into `rows`, one list a micro-batch.
    """
    batches: list[list[int]] = []
    limit = size = min(batch_tokens, MAX_PACKED_TOKENS)
    for prompt, members in _rows_by_prompt(rows).items():
        adds_prompt = True  # the prompt is not in the current sequence yet
        for index in members:
            more = len(rows[index].completion.ids) - 1
            if not batches or size + more + adds_prompt * len(prompt) > limit:
                batches.append([])
                size, adds_prompt = 0, True
            batches[-1].append(index)
            size += more + adds_prompt * len(prompt)
            adds_prompt = False
    return batches
