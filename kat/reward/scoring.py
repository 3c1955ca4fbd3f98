"""Scores of completions under a reward model; completions of one prompt share its computation."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
)

from kat.reward.trees import Packed, Tree, batches_of, pack, shared_start, trees_of
from latentwire.harness.errors import UserError

BATCH_TOKENS = 4096


def reads_at_most(model: Any) -> int | None:
    """Return how many tokens a sequence may have, or None; a sliding window is a limit, as the masks here know none."""
    text = model.config.get_text_config()
    limits = [getattr(text, name, None) for name in ("max_position_embeddings", "sliding_window")]
    return min((int(limit) for limit in limits if limit), default=None)


class SharedStart:
    """A decoder that has read what all prompts begin with, such as the first lines of a chat template, once.

    Args:
        backbone: Takes input ids, gives states.
        prompts: Those that may follow; others are read whole.
    """

    @torch.no_grad()
    def __init__(self, backbone: Any, prompts: Sequence[tuple[int, ...]]) -> None:
        self.backbone = backbone
        windowed = getattr(backbone.config.get_text_config(), "sliding_window", None)  # its cache would forget
        self.tokens = () if windowed else shared_start(prompts)
        if self.tokens:
            output = backbone(input_ids=torch.tensor([self.tokens], device=backbone.device), use_cache=True)
            self.cache, self.first = output.past_key_values, output.last_hidden_state  # (1, S, D)

    def states(self, packed: Packed) -> Tensor:
        """Return the states of a batch, (B, T, D)."""
        start, rows = len(self.tokens), len(packed.input_ids)
        begins = torch.tensor(self.tokens, dtype=torch.long, device=packed.input_ids.device)
        if start == 0 or not bool((packed.input_ids[:, :start] == begins).all()):
            start = 0
        cache = copy.deepcopy(self.cache) if start else None
        if cache is not None:
            cache.batch_repeat_interleave(rows)
        states: Tensor = self.backbone(
            input_ids=packed.input_ids[:, start:],
            attention_mask=packed.attention_mask[:, :, start:],
            position_ids=packed.position_ids[:, start:],
            past_key_values=cache,
            use_cache=start > 0,
        ).last_hidden_state
        return torch.cat([self.first.expand(rows, -1, -1), states], dim=1) if start else states


def tree_scores(model: Any, trees: Sequence[Tree], start: SharedStart | None = None) -> Tensor:
    """Return the score of every completion of one batch, tree by tree, (S,) float32, with its gradient.

    Args:
        model: A reward model.
        trees: At least one.
        start: What the prompts begin with, read before; its part of the computation has no gradient.
    """
    packed = pack(trees, model.config.get_text_config().pad_token_id, model.device, model.dtype)
    hidden = (start or SharedStart(getattr(model, model.base_model_prefix), ())).states(packed)
    scores: Tensor = model.score(hidden[packed.rows, packed.ends])[:, 0].float()
    return scores


@torch.no_grad()
def score(
    model: PreTrainedModel,
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
    batch_tokens: int = BATCH_TOKENS,
) -> Tensor:
    """Return the reward of each (prompt ids, completion ids), (N,) float32 on the CPU.

    Completions of one prompt share its computation, wherever in `sequences` they stand.

    Args:
        model: As `load_reward_model` returns it.
        sequences: Token ids of the reward model's own tokenizer.
        batch_tokens: Positions computed at a time; the completions of a prompt are split up to fit.

    Raises:
        UserError: A completion without tokens, or a sequence that is longer than the model's context.
    """
    limit = reads_at_most(model)
    where: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}  # prompt -> completion -> in `sequences`
    for index, (prompt, completion) in enumerate(sequences):
        if len(completion) == 0:
            raise UserError(f"completion {index} is empty: it has no last token to read a score at; leave it out")
        if limit is not None and len(prompt) + len(completion) > limit:
            raise UserError(
                f"completion {index} ends at token {len(prompt) + len(completion)}, and the reward model reads {limit} "
                "at most; shorten it, or use a model with a longer context"
            )
        where.setdefault(tuple(prompt), {}).setdefault(tuple(completion), []).append(index)
    trees = [tree for prompt, completions in where.items() for tree in trees_of(prompt, completions, batch_tokens)]
    start = SharedStart(getattr(model, model.base_model_prefix), list(where))
    found = torch.empty(len(sequences))
    for batch in batches_of(trees, batch_tokens):
        values = iter(tree_scores(model, [trees[i] for i in batch], start).cpu())
        for tree in (trees[i] for i in batch):
            for completion in tree.completions:
                found[where[tree.prompt][completion]] = next(values)
    return found
