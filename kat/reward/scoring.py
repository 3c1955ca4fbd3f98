"""Rewards of completions; completions of the same prompt share the computation of the prompt. Main entry: `score()`.

A prompt is computed once for all its completions. They follow it in one row; each attends to the prompt and itself, and
its positions continue the prompt's. The scores equal, up to rounding, the scores of separate rows.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kat.reward.trees import Packed, Tree, batches_of, pack, shared_start, trees_of
from latentwire.harness.errors import UserError

BATCH_TOKENS = 4096


def max_sequence_length(model: PreTrainedModel) -> int | None:
    """Return the maximum number of tokens of a sequence, or None; the masks here do not support sliding windows."""
    text = model.config.get_text_config()
    limits = [getattr(text, name, None) for name in ("max_position_embeddings", "sliding_window")]
    return min((int(limit) for limit in limits if limit), default=None)


class SharedStart:
    """A decoder with a cache of the tokens that all prompts start with, such as the first lines of a chat template.

    Args:
        backbone: Decoder that maps input ids to states.
        prompts: Prompts that share the start. A batch with another start is computed without the cache.
    """

    @torch.no_grad()
    def __init__(self, backbone: Any, prompts: Sequence[tuple[int, ...]]) -> None:
        self.backbone = backbone
        windowed = getattr(backbone.config.get_text_config(), "sliding_window", None)
        self.tokens = () if windowed else shared_start(prompts)  # a cache with a window would drop the start
        if self.tokens:
            output = backbone(input_ids=torch.tensor([self.tokens], device=backbone.device), use_cache=True)
            self.cache, self.start_states = output.past_key_values, output.last_hidden_state  # (1, S, D)

    def states(self, packed: Packed) -> Tensor:
        """Return the final states of a batch, (B, T, D)."""
        start, rows = len(self.tokens), len(packed.input_ids)
        expected = torch.tensor(self.tokens, dtype=torch.long, device=packed.input_ids.device)
        if start == 0 or not bool((packed.input_ids[:, :start] == expected).all()):
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
        return torch.cat([self.start_states.expand(rows, -1, -1), states], dim=1) if start else states


def tree_scores(model: Any, trees: Sequence[Tree], start: SharedStart | None = None) -> Tensor:
    """Return the scores of all completions of one batch, tree by tree, (S,) float32 with gradient.

    Args:
        model: A reward model.
        trees: At least one tree.
        start: Cache of the prompts' common start; no gradient flows through it.
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

    Args:
        model: Reward model from `load_reward_model`.
        sequences: Token ids of the reward model's own tokenizer, in any order.
        batch_tokens: Maximum number of positions computed at a time; many completions of a prompt are split to fit.

    Raises:
        UserError: A completion is empty, or a sequence is longer than the model's context.
    """
    limit = max_sequence_length(model)
    where: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}  # prompt -> completion -> indices
    for index, (prompt, completion) in enumerate(sequences):
        if len(completion) == 0:
            raise UserError(f"completion {index} is empty, so it has no last token to score; remove it")
        if limit is not None and len(prompt) + len(completion) > limit:
            raise UserError(
                f"completion {index} ends at token {len(prompt) + len(completion)}, but the reward model's context has "
                f"{limit} tokens; shorten it, or use a model with a longer context"
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
