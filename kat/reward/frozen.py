"""A reward model in two parts: frozen lower blocks with cached states, and the trained blocks above.

Main entry: `SplitScorer`. Frozen blocks return the same states each time a prompt is drawn, so the states are cached.
They are computed for one prompt with all its completions at a time, and do not depend on the batch. A resumed run
starts with an empty cache and computes the same bits.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kat.reward.scoring import SharedStart, tree_scores
from kat.reward.trees import Tree, merged, pack
from kat.training.tuning import NORMS, find_blocks
from latentwire.harness.errors import UserError


class SplitScorer:
    """Scores trees like `kat.reward.scoring.tree_scores`, with gradients for the last blocks, the norm and the head.

    Args:
        model: A reward model with frozen lower blocks.
        blocks: Number of trained blocks at the top.
        trees: All trees to come, at least one. Trees of the same prompt share states.
        memory: Maximum size of the cache in bytes. States that do not fit are computed each time.
        max_tokens: Maximum number of tokens of a prompt with all its completions. The trees of a larger one are
            computed separately.

    Raises:
        UserError: The two parts do not return the scores of the whole model, so the architecture cannot be split.
    """

    def __init__(self, model: Any, blocks: int, trees: Iterable[Tree], memory: int, max_tokens: int) -> None:
        self.model, self.memory = model, memory
        self.lower, self.upper = split_backbone(getattr(model, model.base_model_prefix), blocks)
        self.cache: dict[Tree, Tensor] = {}
        all_trees = merged(trees)
        self.merged_trees = {tree.prompt: tree for tree in all_trees if tree.size <= max_tokens}
        self.start = SharedStart(self.lower, [tree.prompt for tree in all_trees])
        self._check(all_trees[0])

    def scores(self, trees: Sequence[Tree]) -> Tensor:
        """Return the scores of all completions of one batch, tree by tree, (S,) float32 with gradient."""
        pad = self.model.config.get_text_config().pad_token_id
        packed = pack(trees, pad, self.model.device, self.model.dtype)
        states = [self._states(tree) for tree in trees]
        inputs = torch.zeros(*packed.input_ids.shape, states[0].shape[1], device=self.model.device)  # (B, T, D)
        for row, own in enumerate(states):
            inputs[row, : len(own)] = own
        hidden = self.upper(
            inputs_embeds=inputs,
            attention_mask=packed.attention_mask,
            position_ids=packed.position_ids,
            use_cache=False,
        ).last_hidden_state  # (B, T, D)
        scores: Tensor = self.model.score(hidden[packed.rows, packed.ends])[:, 0].float()
        return scores

    def _states(self, tree: Tree) -> Tensor:
        """Return the lower blocks' states of a tree, (T, D), selected from the states of the prompt's merged tree."""
        whole = self.merged_trees.get(tree.prompt, tree)
        states = self.cache.get(whole)
        if states is None:
            states = self._compute(whole)
            size = states.numel() * states.element_size()
            if size <= self.memory:
                self.memory -= size
                self.cache[whole] = states
        columns = [*range(len(tree.prompt))]
        starts: dict[tuple[int, ...], int] = {}
        start = len(tree.prompt)
        for completion in whole.completions:
            starts[completion] = start
            start += len(completion)
        for completion in tree.completions:
            columns += range(starts[completion], starts[completion] + len(completion))
        return states[columns]

    @torch.no_grad()
    def _compute(self, tree: Tree) -> Tensor:
        """Return the lower blocks' states of a prompt and its completions, (T, D) float32."""
        return self.start.states(pack([tree], 0, self.model.device, self.model.dtype))[0].float()

    @torch.no_grad()
    def _check(self, tree: Tree) -> None:
        whole, parts = tree_scores(self.model, [tree]), self.scores([tree])
        tolerance = 1e-3 if self.model.dtype == torch.float32 and not torch.is_autocast_enabled() else 0.1
        if not bool(((whole - parts).abs() <= tolerance * (1 + whole.abs())).all()):
            raise UserError(
                f"tuning.method=last_blocks: the blocks of {type(self.model).__name__} give other scores when they run "
                "in two parts; use tuning.method=lora or tuning.method=all"
            )


def split_backbone(backbone: Any, blocks: int) -> tuple[Any, Any]:
    """Return two views of a decoder that share its weights: the lower blocks without the norm, and the last blocks.

    The lower part takes input ids. The upper part takes the states of the lower part as inputs_embeds.

    Args:
        backbone: A decoder of transformers.
        blocks: Number of blocks in the upper part.
    """
    found = find_blocks(backbone)
    assert found is not None  # `make_trainable` refuses such a model
    (name, stack), depth = found, len(found[1])
    lower, upper = copy.copy(backbone), copy.copy(backbone)
    lower._modules, upper._modules = dict(backbone._modules), dict(backbone._modules)
    lower._modules[name] = nn.ModuleList(list(stack)[: depth - blocks])
    upper._modules[name] = nn.ModuleList(list(stack)[depth - blocks :])
    for norm in NORMS:
        if norm in lower._modules:
            lower._modules[norm] = nn.Identity()
    return lower, upper
