"""Batched greedy decoding from embeddings after a shared prefix. Main entry: `Decoder.decode()`.

The prefix's keys and values are computed once. If the model's attention allows it, all rows of a batch attend to that
one copy (see attention.py). Otherwise, for example with sliding windows, each row gets its own copy of the prefix. Its
columns are then [padding][prefix][prompt][generated tokens]. Padding on the far left leaves positions without gaps, as
in transformers' own generate.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from latentwire.harness.errors import UserError
from latentwire.harness.progress import log
from latentwire.lm import attention
from latentwire.lm.batching import split_beginnings
from latentwire.lm.digest import digest
from latentwire.lm.models import LanguageModel


@dataclass(frozen=True)
class Prefix:
    """The beginning that all prompts share: its length P, and its keys and values, (1, H, P, d) for each layer."""

    length: int
    layers: tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True)
class Generated:
    """The LM's answer to one prompt."""

    token_ids: tuple[int, ...]  # without the end token, but with the token that contains the newline
    text: str  # up to the first newline, stripped
    cut_off: bool  # whether max_new_tokens ended the answer, not a newline or an end token


@torch.no_grad()
def encode_prefix(lm: LanguageModel, token_ids: Tensor) -> Prefix:
    """Compute the keys and values of the shared prefix from its token ids, (P,)."""
    return _encode(lm, input_ids=token_ids)


@torch.no_grad()
def encode_prefix_embeds(lm: LanguageModel, embeds: Tensor) -> Prefix:
    """Compute the keys and values of the shared prefix from its embeddings, (P, D), without gradients."""
    return _encode(lm, inputs_embeds=embeds.to(lm.dtype))


def _encode(lm: LanguageModel, **inputs: Tensor) -> Prefix:
    """Return the keys and values of one row of inputs, (P,) or (P, D)."""
    ((name, own),) = inputs.items()
    if len(own) == 0:
        return Prefix(0, ())
    cache = DynamicCache()
    lm.model(**{name: own[None].to(lm.device)}, past_key_values=cache, use_cache=True, logits_to_keep=1)
    layers: list[Any] = list(cache.layers)
    return Prefix(len(own), tuple((layer.keys, layer.values) for layer in layers))


class Decoder:
    """Decodes greedily until a newline, an end token or max_new_tokens.

    The decoder caches its answers by the embeddings, bit for bit. For example, anchor_offset leaves real text
    unchanged, so its answers are the cached ones of the baseline.

    Args:
        lm: The frozen model.
        prefix: Keys and values of the beginning of every prompt.
        max_new_tokens: Largest number of generated tokens.
    """

    def __init__(self, lm: LanguageModel, prefix: Prefix, max_new_tokens: int) -> None:
        self.lm, self.prefix, self.max_new_tokens = lm, prefix, max_new_tokens
        ends = lm.model.generation_config.eos_token_id
        self.end_ids = frozenset([ends] if isinstance(ends, int) else ends or [])
        self.shares = bool(prefix.layers) and can_share(lm, prefix)
        self.added = max_new_tokens + (0 if self.shares else prefix.length)  # positions of a row without its prompt
        self._known: dict[bytes, list[Generated]] = {}
        self._known_logps: dict[tuple[bytes, str], list[list[float]]] = {}  # by prompts and answers
        self.seconds, self.positions = 0.0, 0  # time and positions of the batches that the cache did not answer

    def decode(self, prompts: list[Tensor]) -> tuple[list[Generated], bool]:
        """Decode one batch of prompts.

        Args:
            prompts: Embeddings of the prompts, (T_i, D) each, in the model's dtype.

        Returns:
            The answer to each prompt, and whether the answers came from the cache.

        Raises:
            UserError: The model's logits are not finite.
        """
        key = digest(prompts)
        if key in self._known:
            return self._known[key], True
        started = time.perf_counter()
        self._known[key] = self.generate(prompts)
        self.seconds += time.perf_counter() - started
        self.positions += sum(map(len, prompts)) + sum(len(output.token_ids) for output in self._known[key])
        return self._known[key], False

    @torch.no_grad()
    def generate(self, prompts: list[Tensor]) -> list[Generated]:
        """Decode one batch of prompts without the cache; arguments as in `decode`."""
        with switched_attention(self.lm, attention.SHARED_PREFIX if self.shares else None):
            return self._generate_rows(DecodingRows(self.lm, self.prefix, prompts, self.max_new_tokens, self.shares))

    def _generate_rows(self, rows: DecodingRows) -> list[Generated]:
        prompts = rows.prompts
        token_ids: list[list[int]] = [[] for _ in prompts]
        ended = [False] * len(prompts)
        running = list(range(len(prompts)))
        logits = rows.prefill()  # (B, V)
        for step in range(self.max_new_tokens):
            best, chosen = logits.max(dim=-1)  # (rows still running,)
            if not bool(torch.isfinite(best).all()):  # max() returns NaN if there is one
                raise UserError("the model's logits are NaN or infinite, so no token can be chosen; use dtype=float32")
            unfinished = []
            for place, (row, token) in enumerate(zip(running, chosen.tolist(), strict=True)):
                if token not in self.end_ids:
                    token_ids[row].append(token)
                ended[row] = token in self.end_ids or "\n" in self._text(token_ids[row])
                if not ended[row]:
                    unfinished.append(place)
            if not unfinished or step == self.max_new_tokens - 1:
                break
            if len(unfinished) < len(running):
                rows.keep(unfinished)
                running = [running[place] for place in unfinished]
                chosen = chosen[unfinished]
            logits = rows.step(chosen)
        return [
            Generated(tuple(ids), self._text(ids).split("\n")[0].strip(), cut_off=not done)
            for ids, done in zip(token_ids, ended, strict=True)
        ]

    def answer_logps(self, prompts: list[Tensor], answers: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return the log-probability of each token of an answer to each prompt.

        Args:
            prompts: Embeddings of the prompts, (T_i, D) each, in the model's dtype.
            answers: Token ids of an answer to each prompt, from 1 to max_new_tokens.

        Raises:
            UserError: The model's logits are NaN.
        """
        key = digest(prompts), str([list(answer) for answer in answers])
        if key not in self._known_logps:
            self._known_logps[key] = self._answer_logps(prompts, answers)
        return self._known_logps[key]

    def _answer_logps(self, prompts: list[Tensor], answers: Sequence[Sequence[int]]) -> list[list[float]]:
        found: list[list[float]] = [[] for _ in prompts]
        for running, tokens, logits in self._along(prompts, answers):
            logps = logits.float().log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]  # (rows still running,)
            if bool(torch.isnan(logps).any()):
                raise UserError("the model's logits are NaN, so no answer has a probability; use dtype=float32")
            for row, logp in zip(running, logps.clamp_max(0).tolist(), strict=True):
                found[row].append(logp)
        return found

    def answer_logits(self, prompts: list[Tensor], answers: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return the logits from which each token of an answer is chosen, (tokens, V) float32 for each prompt.

        Arguments are as in `answer_logps`. Nothing is cached.
        """
        found: list[list[Tensor]] = [[] for _ in prompts]
        for running, _, logits in self._along(prompts, answers):
            for row, one in zip(running, logits.float(), strict=True):
                found[row].append(one)
        return [torch.stack(parts) for parts in found]

    @torch.no_grad()
    def _along(
        self, prompts: list[Tensor], answers: Sequence[Sequence[int]]
    ) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Yield for each token of the answers: the rows that have one, their tokens, and the logits before, (R, V)."""
        running = list(range(len(prompts)))
        with switched_attention(self.lm, attention.SHARED_PREFIX if self.shares else None):
            rows = DecodingRows(self.lm, self.prefix, prompts, self.max_new_tokens, self.shares)
            logits = rows.prefill()  # (B, V)
            for step in range(max(map(len, answers))):
                tokens = torch.tensor([answers[row][step] for row in running], device=self.lm.device)
                yield running, tokens, logits
                unfinished = [place for place, row in enumerate(running) if len(answers[row]) > step + 1]
                if len(unfinished) < len(running) and unfinished:
                    rows.keep(unfinished)
                    running = [running[place] for place in unfinished]
                    tokens = tokens[unfinished]
                if unfinished:
                    logits = rows.step(tokens)

    def _text(self, ids: list[int]) -> str:
        return str(self.lm.tokenizer.decode(ids, skip_special_tokens=True))


class DecodingRows:
    """The unfinished rows of a batch: their cache, mask and positions.

    If the rows share the prefix, the cache holds only their own columns; otherwise it also holds a copy of the prefix
    for each row.

    Args:
        lm: The frozen model.
        prefix: Keys and values of the shared prefix.
        prompts: Embeddings of the prompts, (T_i, D) each.
        room: Number of columns to reserve for generated tokens.
        share: Whether the rows share the prefix.
    """

    def __init__(self, lm: LanguageModel, prefix: Prefix, prompts: list[Tensor], room: int, share: bool) -> None:
        self.lm, self.prefix, self.prompts, self.room = lm, prefix, prompts, room
        self.copies = bool(prefix.layers) and not share
        self.total = torch.full((len(prompts),), prefix.length, device=lm.device)  # (B,) positions used so far
        self.mask = torch.ones(len(prompts), 0, dtype=torch.long, device=lm.device)  # (B, columns of the cache)
        self.cache: Cache = DynamicCache()
        self.options = {"shared_prefix": prefix.layers} if share and prefix.layers else {}

    def prefill(self) -> Tensor:
        """Run the model over the prompts, and return the logits after the last position of each, (B, V).

        If the rows share the prefix, neighbouring prompts also share their common beginning, which is encoded once.
        Copied prefixes rule this out: a sliding window counts columns, so padding must not follow a beginning.
        """
        if self.copies:
            return self._prefill_after_copies()
        groups, cuts = split_beginnings(self.prompts) if self.options else ([], [0] * len(self.prompts))
        if any(cuts):
            firsts = [groups.index(group) for group in range(groups[-1] + 1)]
            once = DecodingRows(self.lm, self.prefix, [self.prompts[i][: cuts[i]] for i in firsts], 0, share=True)
            once._append(once.prompts)
            index = torch.tensor(groups, device=self.lm.device)
            once.cache.batch_select_indices(index)
            self.cache, self.mask, self.total = once.cache, once.mask[index], once.total[index]
        return self._append([prompt[cut:] for prompt, cut in zip(self.prompts, cuts, strict=True)])

    def _append(self, parts: list[Tensor]) -> Tensor:
        """Append a part to each row, right-aligned in new columns, and return the last logits, (B, V)."""
        embeds, lengths, padding = self._aligned(parts)
        columns = torch.arange(embeds.shape[1], device=self.lm.device)
        positions = (self.total[:, None] + columns - padding[:, None]).clamp_min(0)  # (B, S)
        self.mask = torch.cat([self.mask, (columns >= padding[:, None]).long()], dim=1)
        self.total = self.total + lengths
        return self._forward(positions, inputs_embeds=embeds)

    def _prefill_after_copies(self) -> Tensor:
        """Run the model over the prompts, each after its own copy of the prefix, and return the last logits, (B, V)."""
        embeds, lengths, padding = self._aligned(self.prompts)
        own = embeds.shape[1]
        columns = torch.arange(own, device=self.lm.device)
        positions = (self.total[:, None] + columns - padding[:, None]).clamp_min(0)
        columns = torch.arange(self.prefix.length + own, device=self.lm.device)
        self.mask = (columns >= padding[:, None]).long()  # (B, P + S)
        layers: list[Any] = [_RowLayer(k, v, padding.tolist(), own, self.room) for k, v in self.prefix.layers]
        self.cache = Cache(layers=layers)
        self.total = self.total + lengths
        return self._forward(positions, inputs_embeds=embeds)

    def _aligned(self, parts: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return embeddings padded on the left, (B, S, D), and the lengths of parts and paddings, both (B,)."""
        lengths = torch.tensor([len(part) for part in parts], device=self.lm.device)
        width = int(lengths.max())
        embeds = torch.zeros(len(parts), width, parts[0].shape[-1], dtype=self.lm.dtype, device=self.lm.device)
        for row, part in enumerate(parts):
            embeds[row, width - len(part) :] = part
        return embeds, lengths, width - lengths

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token id to each row, (B,), and return the next logits, (B, V)."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        positions = self.total[:, None]
        self.total = self.total + 1
        return self._forward(positions, input_ids=tokens[:, None])

    def keep(self, rows: list[int]) -> None:
        """Drop all rows but these."""
        index = torch.tensor(rows, device=self.lm.device)
        self.mask, self.total = self.mask[index], self.total[index]
        self.cache.batch_select_indices(index)

    def _forward(self, positions: Tensor, **inputs: Tensor) -> Tensor:
        last = torch.tensor([positions.shape[1] - 1], device=self.lm.device)
        output = self.lm.model(
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=last,  # a tensor, as an integer would give the output head strided rows, which are slow
            **self.options,
            **inputs,
        )
        logits: Tensor = output.logits[:, -1]
        return logits


class _RowLayer(DynamicLayer):
    """Keys and values of one layer, in a buffer of the rows' final length, so that growing copies nothing.

    The first update writes the prompts' columns. In a row shorter than the longest, these columns begin with padding.
    The row's prefix extends into that padding, so the first update leaves those columns unchanged.
    """

    def __init__(self, keys: Tensor, values: Tensor, padding: list[int], own: int, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype, self.device = keys.dtype, keys.device
        _, heads, self.used, _ = keys.shape
        self._buffers = [
            prefix.new_zeros(len(padding), heads, self.used + own + room, prefix.shape[-1]) for prefix in (keys, values)
        ]
        for row, pad in enumerate(padding):
            for buffer, prefix in zip(self._buffers, (keys, values), strict=True):
                buffer[row, :, pad : pad + self.used] = prefix[0]
        columns = torch.arange(own, device=self.device)
        padded = torch.tensor(padding, device=self.device)
        self._not_own = (columns < padded[:, None])[:, None, :, None] if any(padding) else None  # (B, 1, S, 1)
        self._show()
        self.is_initialized = True

    def _show(self) -> None:
        self.keys, self.values = (buffer[:, :, : self.used] for buffer in self._buffers)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write new columns in place, and return all columns used so far."""
        end = self.used + key_states.shape[-2]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            place = buffer[:, :, self.used : end]
            place.copy_(new if self._not_own is None else torch.where(self._not_own, place, new))
        self._not_own = None
        self.used = end
        self._show()
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the rows with these indices, (rows,)."""
        self._buffers = [buffer[indices] for buffer in self._buffers]
        self._show()


@contextlib.contextmanager
def switched_attention(lm: LanguageModel, name: str | None) -> Iterator[None]:
    """Switch the model to another attention implementation while the context lasts; None changes nothing."""
    previous = lm.model.config._attn_implementation
    if name is not None:
        lm.model.set_attn_implementation(name)
    try:
        yield
    finally:
        if name is not None:
            lm.model.set_attn_implementation(previous)


@torch.no_grad()
def can_share(lm: LanguageModel, prefix: Prefix) -> bool:
    """Return whether the model computes the same logits with a shared prefix as with a copied one.

    transformers reports sliding windows. A trial run detects every other obstacle, such as capped scores or a custom
    attention, without a list of architectures.
    """
    if any(getattr(layer, "is_sliding", False) for layer in DynamicCache(config=lm.model.config).layers):
        return False
    probe = lm.embed(torch.arange(1, 6))
    prompts = [probe, probe[:2]]
    expected = DecodingRows(lm, prefix, prompts, 1, share=False).prefill().float()
    try:
        with switched_attention(lm, attention.SHARED_PREFIX):
            got = DecodingRows(lm, prefix, prompts, 1, share=True).prefill().float()
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
        log(f"note: {type(lm.model).__name__} cannot share the shots' cache ({type(error).__name__}); copying it")
        return False
    tolerance = 1e-3 if lm.dtype == torch.float32 else 0.1
    agrees = bool((got - expected).abs().max() <= tolerance * expected.abs().max())
    if not agrees:
        log(f"note: the attention of {type(lm.model).__name__} cannot share the shots' cache; copying it")
    return agrees
