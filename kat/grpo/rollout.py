"""Batched sampling of completions with a cache of keys and values. Main entry: `sample()`.

The random numbers of a completion depend on the seed and its key alone; the batch changes its logits only by rounding.
A prompt is computed once, and its keys and values are repeated for its G completions. Rows that have ended leave the
batch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from kat.grpo.objective import per_token_entropy, per_token_logps
from latentwire.harness.errors import UserError
from latentwire.harness.random import generator_for
from latentwire.lm.batching import pack_padded

IDLE = 0.125  # ended rows are removed from a batch once they make up at least this share of it


@dataclass(frozen=True)
class Sampling:
    """Settings of the sampling."""

    num_generations: int  # G, completions of a prompt
    max_new_tokens: int
    temperature: float
    top_p: float
    batch_tokens: int  # maximum of rows times positions in a batch; completions of a prompt always stay together

    def check(self, prefix: str = "grpo.") -> None:
        """Validate the settings.

        Args:
            prefix: Prefix of the settings' names in messages.

        Raises:
            UserError: A setting is out of range.
        """
        if self.num_generations < 1:
            raise UserError(f"{prefix}num_generations={self.num_generations}: must be at least 1")
        if self.max_new_tokens < 1:
            raise UserError(f"{prefix}max_completion_length={self.max_new_tokens}: must be at least 1")
        if not 0 < self.temperature < float("inf"):
            raise UserError(
                f"{prefix}temperature={self.temperature}: must be above 0; 1 leaves the distribution unchanged"
            )
        if not 0 < self.top_p <= 1:
            raise UserError(f"{prefix}top_p={self.top_p}: must be above 0 and at most 1; 1 keeps all tokens")


@dataclass(frozen=True)
class Completion:
    """One sampled completion of C tokens, including the end token if it was drawn."""

    ids: tuple[int, ...]
    ended: bool  # False if cut off by max_new_tokens
    logps: Tensor  # (C,) float32, nats, at the temperature, over the whole vocabulary (no top_p)
    entropy: Tensor  # (C,) float32, nats, at the temperature, over the whole vocabulary (no top_p)
    states: Tensor | None  # (P + C - 1, D), outputs of `hidden_state_hook` for all tokens except the last

    @property
    def text_ids(self) -> list[int]:
        """The ids without the end token, which need not be a special token of the tokenizer."""
        return list(self.ids[:-1] if self.ended else self.ids)


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids that end a completion: the tokenizer's end token and the end tokens of the generation config.

    Raises:
        UserError: Neither of them names an end token.
    """
    ends = model.generation_config.eos_token_id
    found = {*([ends] if isinstance(ends, int) else ends or []), tokenizer.eos_token_id} - {None}
    if not found:
        raise UserError("the tokenizer has no end token, so completions would never end; set eos_token in its config")
    return frozenset(found)


def require_room(length: int, new_tokens: int, context: int) -> None:
    """Check that a prompt is not empty and fits into the context with its new tokens.

    Args:
        length: Number of tokens of the prompt.
        new_tokens: Maximum number of tokens of a completion.
        context: Context length of the model, in tokens.

    Raises:
        UserError: The prompt is empty or too long.
    """
    if length == 0:
        raise UserError("a prompt has no tokens; remove it from the prompts file")
    if length + new_tokens > context:
        raise UserError(
            f"a prompt of {length} tokens and {new_tokens} new ones exceed the model's context of {context}; "
            "shorten grpo.max_completion_length or remove the prompt"
        )


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[tuple[object, ...]],
    sampling: Sampling,
    *,
    seed: int,
    ends: frozenset[int],
    hidden_state_hook: nn.Module | None = None,
) -> list[list[Completion]]:
    """Return G sampled completions of each prompt.

    Args:
        model: A causal LM of transformers, in evaluation mode.
        prompts: Token ids of the N prompts.
        keys: Key of each prompt's random numbers: completion g of a prompt with key k draws from
            generator_for(seed, *k, g), independent of the batch.
        sampling: Settings of the sampling.
        seed: Seed of all draws.
        ends: Ids that end a completion; see `end_tokens`.
        hidden_state_hook: A module of the model, such as a block, whose outputs are stored with the completions.

    Returns:
        The G completions of each prompt, in order.

    Raises:
        UserError: A prompt is empty, or leaves no room in the context for max_new_tokens.
    """
    context = int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize)
    for prompt in prompts:
        require_room(len(prompt), sampling.max_new_tokens, context)
    found: list[list[Completion]] = [[] for _ in prompts]
    for batch in batches_of_prompts([len(prompt) for prompt in prompts], sampling):
        groups = _sample_batch(
            model, [prompts[i] for i in batch], [keys[i] for i in batch], sampling, seed, ends, hidden_state_hook
        )
        for i, completions in zip(batch, groups, strict=True):
            found[i] = completions
    return found


def batches_of_prompts(lengths: Sequence[int], sampling: Sampling) -> list[list[int]]:
    """Return batches of prompts of similar length, longest first, of at most batch_tokens positions in all rows."""
    sizes = [sampling.num_generations * (length + sampling.max_new_tokens) for length in lengths]
    return pack_padded(sizes, sampling.batch_tokens)


def _sample_batch(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[tuple[object, ...]],
    sampling: Sampling,
    seed: int,
    ends: frozenset[int],
    hidden_state_hook: nn.Module | None,
) -> list[list[Completion]]:
    """Return the completions of prompts that are computed together; arguments as in `sample`."""
    g, room = sampling.num_generations, sampling.max_new_tokens
    uniform = torch.stack(
        [
            torch.rand(room, generator=generator_for(seed, *key, number), dtype=torch.float64)
            for key in keys
            for number in range(g)
        ]
    ).to(model.device)  # (N G, room)
    rows = [_Row() for _ in range(len(prompts) * g)]
    with _recorded_outputs(hidden_state_hook) as outputs:
        batch = _Batch(model, prompts, g)
        prompt_states = [] if hidden_state_hook is None else list(outputs.pop())  # (P, D) each
        for step in range(room):
            lines = torch.tensor(batch.running, device=model.device)
            tokens = choose(batch.logits, sampling.temperature, sampling.top_p, uniform[lines, step])
            logps = per_token_logps(batch.logits[:, None], tokens[:, None], sampling.temperature)[:, 0]
            entropy = per_token_entropy(batch.logits, sampling.temperature)
            for line, values in enumerate(zip(tokens.tolist(), logps, entropy, strict=True)):
                rows[batch.running[line]].add(*values, ends)
            active = [line for line, row in enumerate(batch.running) if not rows[row].ended]
            if not active or step == room - 1:
                break
            batch.advance(tokens, active, step)
            if hidden_state_hook is not None:
                for row, state in zip(batch.running, outputs.pop(), strict=True):
                    rows[row].add_state(state)
    completions = []
    for number, row_so_far in enumerate(rows):
        prompt = number // g
        states = None if hidden_state_hook is None else prompt_states[prompt][batch.width - len(prompts[prompt]) :]
        completions.append(row_so_far.completion(states))
    return [completions[i * g : (i + 1) * g] for i in range(len(prompts))]


class _Batch:
    """Lines that are decoded together, with their cache of keys and values.

    Args:
        model: A causal LM in evaluation mode.
        prompts: Token ids of the N prompts.
        g: Number of lines of each prompt.
    """

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], g: int) -> None:
        self.model, self.width, self.cache = model, max(map(len, prompts)), DynamicCache()
        width, device = self.width, model.device
        padding = torch.tensor([width - len(prompt) for prompt in prompts], device=device)
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        columns = torch.arange(width, device=device)
        mask = (columns >= padding[:, None]).long()  # (N, P)
        # a tensor: a slice would give the output head strided rows, many times slower
        logits = self._logits(ids, mask, (columns - padding[:, None]).clamp_min(0), columns[-1:])  # (N, V)
        self.cache.batch_repeat_interleave(g)
        self.logits, self.mask, self.padding = (x.repeat_interleave(g, dim=0) for x in (logits, mask, padding))
        self.running = list(range(len(prompts) * g))  # row number of each line

    def advance(self, tokens: Tensor, active: list[int], step: int) -> None:
        """Compute the logits after one more token of each line.

        Args:
            tokens: Token of each line, (B,).
            active: Lines that have not ended. The others are removed once they are many enough.
            step: Number of tokens that each line had before.
        """
        if len(active) <= (1 - IDLE) * len(self.running):
            selected = torch.tensor(active, device=tokens.device)
            self.cache.batch_select_indices(selected)
            tokens, self.mask, self.padding = tokens[selected], self.mask[selected], self.padding[selected]
            self.running = [self.running[line] for line in active]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        positions = (self.width + step - self.padding)[:, None]
        self.logits = self._logits(tokens[:, None], self.mask, positions, 1)

    def _logits(self, ids: Tensor, mask: Tensor, positions: Tensor, logits_to_keep: Tensor | int) -> Tensor:
        """Return the logits after the last of the ids, (B, T) -> (B, V), and extend the cache."""
        output = self.model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=self.cache,
                            use_cache=True, logits_to_keep=logits_to_keep)  # fmt: skip
        logits: Tensor = output.logits[:, -1]
        return logits


class _Row:
    """An unfinished completion. Tokens after its end are ignored; they come from rows still in the batch."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.logps: list[Tensor] = []
        self.entropy: list[Tensor] = []
        self.states: list[Tensor] = []
        self.ended = False

    def add(self, token: int, logp: Tensor, entropy: Tensor, ends: frozenset[int]) -> None:
        """Append a token with its log-probability and entropy."""
        if self.ended:
            return
        self.ids.append(token)
        self.logps.append(logp)
        self.entropy.append(entropy)
        self.ended = token in ends

    def add_state(self, state: Tensor) -> None:
        """Append the state of the last token, (1, D)."""
        if not self.ended:
            self.states.append(state)

    def completion(self, prompt_states: Tensor | None) -> Completion:
        """Return the completion; its states follow the prompt's states, (P, D)."""
        states = None if prompt_states is None else torch.cat([prompt_states, *self.states])
        return Completion(tuple(self.ids), self.ended, torch.stack(self.logps), torch.stack(self.entropy), states)


def choose(logits: Tensor, temperature: float, top_p: float, uniform: Tensor) -> Tensor:
    """Return a token for each row, drawn by inverting the cumulative distribution, (B,).

    With top_p below 1 the draw is from the most likely tokens that together have at least probability top_p (Holtzman
    et al. 2020). The most likely token is always among them.

    Args:
        logits: Logits of each row, (B, V).
        temperature: Sampling temperature, which divides the logits.
        top_p: Probability to keep, above 0 and at most 1.
        uniform: A random number in [0, 1) for each row, (B,) float64.
    """
    probabilities = (logits.float() / temperature).softmax(dim=-1)  # (B, V)
    order = None
    if top_p < 1:
        probabilities, order = probabilities.sort(dim=-1, descending=True, stable=True)
        before = probabilities.cumsum(dim=-1, dtype=torch.float64) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    reached = probabilities.cumsum(dim=-1, dtype=torch.float64)
    total = reached[:, -1:]
    point = torch.minimum(uniform[:, None] * total, total.nextafter(torch.zeros_like(total)))  # below the total
    drawn = torch.searchsorted(reached, point, right=True)  # (B, 1)
    return (drawn if order is None else order.gather(-1, drawn))[:, 0]


@contextmanager
def _recorded_outputs(module: nn.Module | None) -> Iterator[list[Tensor]]:
    """Record the outputs of a module in a list, which the caller empties."""
    outputs: list[Tensor] = []
    if module is None:
        yield outputs
        return

    def keep(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handle = module.register_forward_hook(keep)
    try:
        yield outputs
    finally:
        handle.remove()
