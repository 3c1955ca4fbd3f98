"""A reward model in two parts: frozen lower blocks, whose states are kept prompt by prompt, and the blocks above.

Where the last blocks are trained, the others give the same states at every visit of a prompt. They are computed once
for a prompt with all its completions, one prompt at a time, so that they do not depend on what else is in a batch or in
memory: a resumed run, whose memory is empty, gets the same bits.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kat.reward.scoring import SharedStart, tree_scores
from kat.reward.trees import Tree, merged, pack
from latentwire.harness.errors import UserError


class SplitScorer:
    """Scores trees like `kat.reward.scoring.tree_scores`, with gradients for the last blocks, the norm and the head.

    Args:
        model: A reward model whose blocks before the last `blocks` are frozen.
        blocks: How many blocks are trained.
        trees: At least one; completions that follow one prompt in any of them share its states.
        memory: Bytes of states to keep; what does not fit is computed again at every visit.
        most_tokens: A prompt whose completions take more than this together has its trees computed apart.

    Raises:
        UserError: The two parts do not give what the whole gives: an architecture that cannot be split this way.
    """

    def __init__(self, model: Any, blocks: int, trees: Iterable[Tree], memory: int, most_tokens: int) -> None:
        self.model, self.memory = model, memory
        self.lower, self.upper = split_backbone(getattr(model, model.base_model_prefix), blocks)
        self.kept: dict[Tree, Tensor] = {}
        families = merged(trees)
        self.families = {family.prompt: family for family in families if family.size <= most_tokens}
        self.start = SharedStart(self.lower, [family.prompt for family in families])
        self._check(families[0])

    def scores(self, trees: Sequence[Tree]) -> Tensor:
        """Return the score of every completion of one batch, tree by tree, (S,) float32, with its gradient."""
        pad = self.model.config.get_text_config().pad_token_id
        packed = pack(trees, pad, self.model.device, self.model.dtype)
        states = [self._states(tree) for tree in trees]
        inputs = torch.zeros(*packed.input_ids.shape, states[0].shape[1], device=self.model.device)  # (B, T, D)
        for row, found in enumerate(states):
            inputs[row, : len(found)] = found
        hidden = self.upper(
            inputs_embeds=inputs,
            attention_mask=packed.attention_mask,
            position_ids=packed.position_ids,
            use_cache=False,
        ).last_hidden_state  # (B, T, D)
        scores: Tensor = self.model.score(hidden[packed.rows, packed.ends])[:, 0].float()
        return scores

    def _states(self, tree: Tree) -> Tensor:
        """Return what the lower blocks give for a tree, (T, D), out of that of all completions of its prompt."""
        family = self.families.get(tree.prompt, tree)
        states = self.kept.get(family)
        if states is None:
            states = self._computed(family)
            size = states.numel() * states.element_size()
            if size <= self.memory:
                self.memory -= size
                self.kept[family] = states
        columns = [*range(len(tree.prompt))]
        starts: dict[tuple[int, ...], int] = {}
        start = len(tree.prompt)
        for completion in family.completions:
            starts[completion] = start
            start += len(completion)
        for completion in tree.completions:
            columns += range(starts[completion], starts[completion] + len(completion))
        return states[columns]

    @torch.no_grad()
    def _computed(self, family: Tree) -> Tensor:
        """Return what the lower blocks give for a prompt and its completions, (T, D) float32."""
        return self.start.states(pack([family], 0, self.model.device, self.model.dtype))[0].float()

    @torch.no_grad()
    def _check(self, tree: Tree) -> None:
        whole, parts = tree_scores(self.model, [tree]), self.scores([tree])
        tolerance = 1e-3 if self.model.dtype == torch.float32 and not torch.is_autocast_enabled() else 0.1
        if not bool(((whole - parts).abs() <= tolerance * (1 + whole.abs())).all()):
            raise UserError(
                f"tuning.method=last_blocks: the blocks of {type(self.model).__name__} do not give the same when they "
                "are run in two parts; use tuning.method=lora or tuning.method=all"
            )


def split_backbone(backbone: Any, blocks: int) -> tuple[Any, Any]:
    """Return two views of a decoder with its own weights: all but the last blocks without norm, and the last blocks.

    The first takes input ids, the second the states that the first gives, as inputs_embeds.
    """
    depth = backbone.config.get_text_config().num_hidden_layers
    name, stack = next((n, m) for n, m in backbone.named_children() if isinstance(m, nn.ModuleList) and len(m) == depth)
    lower, upper = copy.copy(backbone), copy.copy(backbone)
    lower._modules, upper._modules = dict(backbone._modules), dict(backbone._modules)
    lower._modules[name] = nn.ModuleList(list(stack)[: depth - blocks])
    upper._modules[name] = nn.ModuleList(list(stack)[depth - blocks :])
    for norm in ("norm", "ln_f", "final_layer_norm"):
        if norm in lower._modules:
            lower._modules[norm] = nn.Identity()
    return lower, upper
