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
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kat.grpo.decoding import fast_linears, roomy_cache
from latentwire.harness.errors import UserError
from latentwire.harness.random import generator_for
from latentwire.lm.batching import pack_padded

IDLE = 0.125  # ended rows are removed from a batch once they make up at least this share of it
CACHED = 2  # positions whose keys and values take less memory than one position with logits and gradients
BLOCK = 128  # tokens of a block of the vocabulary; most vocabularies are a multiple


@dataclass(frozen=True)
class Sampling:
    """Settings of the sampling."""

    num_generations: int  # G, completions of a prompt
    max_new_tokens: int
    temperature: float
    top_p: float
    batch_tokens: int  # positions in training; a batch of samples has at most CACHED times as many

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
    """Return batches of prompts of similar length, longest first.

    A batch has at most CACHED batch_tokens positions in all rows. Completions of a prompt always stay together.
    """
    sizes = [sampling.num_generations * (length + sampling.max_new_tokens) for length in lengths]
    return pack_padded(sizes, CACHED * sampling.batch_tokens)


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
    g, room, device = sampling.num_generations, sampling.max_new_tokens, model.device
    uniform = torch.stack(
        [
            torch.rand(room, generator=generator_for(seed, *key, number), dtype=torch.float64)
            for key in keys
            for number in range(g)
        ]
    ).to(device)  # (N G, room)
    count = len(uniform)
    ids = torch.zeros(count, room, dtype=torch.long, device=device)
    logps, entropy = torch.zeros(2, count, room, device=device)
    lengths: dict[int, int] = {}  # number of tokens of each row that has ended
    with _recorded_outputs(hidden_state_hook) as outputs, fast_linears(model):
        batch = _Batch(model, prompts, g, room)
        prompt_states = outputs.pop() if outputs else None  # (N, P, D)
        states = None if prompt_states is None else prompt_states.new_empty(count, room - 1, prompt_states.shape[-1])
        for step in range(room):
            tokens, *values = draw_tokens(
                batch.logits, sampling.temperature, sampling.top_p, uniform[batch.lines, step]
            )
            for kept, new in zip((ids, logps, entropy), (tokens, *values), strict=True):
                kept[batch.lines, step] = new
            for row, token in zip(batch.running, tokens.tolist(), strict=True):
                if token in ends:
                    lengths.setdefault(row, step + 1)
            active = [line for line, row in enumerate(batch.running) if row not in lengths]
            if not active or step == room - 1:
                break
            batch.advance(tokens, active, step)
            if states is not None:
                states[batch.lines, step] = outputs.pop()[:, 0]
    completions = []
    for row, drawn in enumerate(ids.tolist()):
        length, prompt = lengths.get(row, room), row // g
        own = None
        if prompt_states is not None and states is not None:
            own = torch.cat([prompt_states[prompt, batch.width - len(prompts[prompt]) :], states[row, : length - 1]])
        completions.append(
            Completion(tuple(drawn[:length]), row in lengths, logps[row, :length], entropy[row, :length], own)
        )
    return [completions[i * g : (i + 1) * g] for i in range(len(prompts))]


class _Batch:
    """Lines that are decoded together, with their cache of keys and values.

    A line of a row that has ended goes on until `advance` removes it; its tokens are ignored.

    Args:
        model: A causal LM in evaluation mode.
        prompts: Token ids of the N prompts.
        g: Number of lines of each prompt.
        room: Maximum number of new tokens.
    """

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], g: int, room: int) -> None:
        self.model, self.width, self.cache = model, max(map(len, prompts)), roomy_cache(room)
        width, device = self.width, model.device
        padding = torch.tensor([width - len(prompt) for prompt in prompts], device=device)
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        columns = torch.arange(width + room, device=device)
        mask = (columns >= padding[:, None]).long()  # (N, P + room)
        positions = (columns[:width] - padding[:, None]).clamp_min(0)
        # a tensor: a slice would give the output head strided rows, many times slower
        logits = self._logits(ids, mask[:, :width], positions, columns[width - 1 : width])  # (N, V)
        self.cache.batch_repeat_interleave(g)
        self.logits, self.mask, self.padding = (x.repeat_interleave(g, dim=0) for x in (logits, mask, padding))
        self._run(list(range(len(prompts) * g)))

    def _run(self, running: list[int]) -> None:
        self.running = running  # row number of each line
        self.lines = torch.tensor(running, device=self.model.device)  # the same as a tensor, (B,)

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
            self._run([self.running[line] for line in active])
        end = self.width + step
        self.logits = self._logits(tokens[:, None], self.mask[:, : end + 1], (end - self.padding)[:, None], 1)

    def _logits(self, ids: Tensor, mask: Tensor, positions: Tensor, logits_to_keep: Tensor | int) -> Tensor:
        """Return the logits after the last of the ids, (B, T) -> (B, V), and extend the cache."""
        output = self.model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=self.cache,
                            use_cache=True, logits_to_keep=logits_to_keep)  # fmt: skip
        logits: Tensor = output.logits[:, -1]
        return logits


def draw_tokens(logits: Tensor, temperature: float, top_p: float, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a token for each row by inverting the cumulative distribution.

    With top_p below 1 the draw is from the most likely tokens that together have at least probability top_p (Holtzman
    et al. 2020). The most likely token is always among them.

    Args:
        logits: Logits of each row, (B, V).
        temperature: Sampling temperature, which divides the logits.
        top_p: Probability to keep, above 0 and at most 1.
        uniform: A random number in [0, 1) for each row, (B,) float64.

    Returns:
        The tokens, their log-probabilities, and the entropies of the distributions, (B,) each. The last two are in nats
        and over the whole vocabulary.
    """
    logps = (logits.float() / temperature).log_softmax(dim=-1)  # (B, V)
    probabilities = logps.exp()
    entropy = -(probabilities * logps).sum(dim=-1)
    order = None
    if top_p < 1:
        probabilities, order = probabilities.sort(dim=-1, descending=True, stable=True)
        before = probabilities.cumsum(dim=-1, dtype=torch.float64) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    tokens = _inverse(probabilities, uniform)
    if order is not None:
        tokens = order.gather(-1, tokens)
    return tokens[:, 0], logps.gather(-1, tokens)[:, 0], entropy


def _inverse(weights: Tensor, uniform: Tensor) -> Tensor:
    """Return where the cumulative weights of each row exceed a share of their sum, (B, V) and (B,) -> (B, 1).

    The sums of blocks of weights tell the block, so only its weights are summed one by one.
    """
    blocks = nn.functional.pad(weights, (0, -weights.shape[1] % BLOCK)).unflatten(
        1, (-1, BLOCK)
    )  # (B, V / BLOCK, BLOCK)
    reached = blocks.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    point = uniform[:, None] * reached[:, -1:]
    block = _first_above(reached, point)
    point = point - nn.functional.pad(reached, (1, 0)).gather(1, block)  # what the blocks before leave
    inside = blocks.take_along_dim(block[..., None], dim=1)[:, 0].cumsum(dim=-1, dtype=torch.float64)  # (B, BLOCK)
    return block * BLOCK + _first_above(inside, point)


def _first_above(reached: Tensor, point: Tensor) -> Tensor:
    """Return the first position whose cumulative weight is above a point, (B, n) and (B, 1) -> (B, 1)."""
    total = reached[:, -1:]
    point = torch.minimum(point, total.nextafter(torch.zeros_like(total)))  # below the total, in spite of rounding
    return torch.searchsorted(reached, point, right=True)


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
