"""A frozen LM that reads latents, with gradients through it: logits of what shall follow them.

A row is one passage: what stands for it, and then branches, each a question with its answer. The branches do not see
one another, so the passage is read once for all its questions. The shots' keys and values are computed once, without
gradients. Nothing of the LM is trained; gradients pass through it to its inputs alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from latentwire.harness.errors import UserError
from latentwire.lm.attention import additive
from latentwire.lm.decoding import Prefix
from latentwire.lm.models import LanguageModel

FULL, SLIDING = "full_attention", "sliding_attention"  # kinds of layers, in the library's words


@dataclass(frozen=True)
class ReaderBranch:
    """What follows a passage: tokens, the last of which are to be predicted."""

    token_ids: tuple[int, ...]
    predicted: int  # how many at the end

    @property
    def targets(self) -> tuple[int, ...]:
        """The tokens to predict."""
        return self.token_ids[len(self.token_ids) - self.predicted :]


@dataclass(frozen=True)
class ReaderRow:
    """A passage as the LM reads it, and its branches."""

    beginning: Tensor  # (C, D): 'Context:' and what stands for the passage
    branches: tuple[ReaderBranch, ...]

    @property
    def width(self) -> int:
        """Positions; the last token of a branch is only predicted."""
        return len(self.beginning) + sum(len(branch.token_ids) - 1 for branch in self.branches)


class Reader:
    """Reads rows after a prefix.

    Args:
        lm: The frozen LM.
        prefix: The shots.
    """

    def __init__(self, lm: LanguageModel, prefix: Prefix) -> None:
        self.lm, self.prefix = lm, prefix
        self.body, self.head = lm.model.base_model, lm.model.get_output_embeddings()
        config = lm.model.config.get_text_config()
        self.cap: float | None = getattr(config, "final_logit_softcapping", None)
        self.kinds = set(getattr(config, "layer_types", None) or ())
        if strange := sorted(self.kinds - {FULL, SLIDING}):
            raise UserError(
                f"{type(lm.model).__name__}: has layers of {', '.join(strange)}, over which branches cannot be kept "
                f"apart; choose another model=..., with layers of {FULL} or {SLIDING} only"
            )
        self.window: int | None = getattr(config, "sliding_window", None) if slides_window(config) else None

    def targets(self, rows: list[ReaderRow]) -> Tensor:
        """Return the tokens to predict, row by row, branch by branch: (N,)."""
        ids = [token for row in rows for branch in row.branches for token in branch.targets]
        return torch.tensor(ids, device=self.lm.device)

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits of final states: (N, D) -> (N, V)."""
        logits: Tensor = self.head(states)
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def states(self, rows: list[ReaderRow]) -> Tensor:
        """Return the final states from which the tokens to predict follow, in the order of `targets`: (N, D).

        Raises:
            UserError: The rows are longer than the LM's context.
        """
        self.require_room(max(len(r.beginning) + max(len(b.token_ids) for b in r.branches) for r in rows))
        embeds, positions, seen, predicted = self._lay_out(rows)
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self.prefix.layers):
            cache.update(keys.expand(len(rows), -1, -1, -1), values.expand(len(rows), -1, -1, -1), layer)
        hidden = self.body(
            inputs_embeds=embeds, attention_mask=self._masks(seen, positions), position_ids=positions,
            past_key_values=cache, use_cache=True,
        ).last_hidden_state  # (B, S, D)  # fmt: skip
        states: Tensor = hidden[predicted[0], predicted[1]]
        return states

    def require_room(self, positions: int) -> None:
        """Refuse so many positions after the prefix where the LM has no room for them.

        Raises:
            UserError: It has none.
        """
        longest = self.prefix.length + positions
        if longest > self.lm.context_length:
            raise UserError(
                f"shots: with {self.prefix.length} tokens of shots a passage and its question take {longest} "
                f"positions, more than the model's {self.lm.context_length}; lower shots, or leave out long passages"
            )

    def _masks(self, seen: Tensor, positions: Tensor) -> Tensor | dict[str, Tensor]:
        """Return what is added to the scores, (B, 1, S, P + S), by kind of layer where some see but a window.

        In four dimensions: the library makes no mask of its own from it.

        Args:
            seen: Who sees whom, (B, S, P + S).
            positions: (B, S).
        """
        whole = additive(seen, self.lm.dtype)[:, None]
        if self.window is None:
            return whole
        shots = torch.arange(self.prefix.length, device=positions.device).expand(len(positions), -1)
        near = positions[:, :, None] - torch.cat([shots, positions], dim=1)[:, None] < self.window
        close = additive(seen & near, self.lm.dtype)[:, None]
        return {FULL: whole, SLIDING: close} if self.kinds else close

    def _lay_out(self, rows: list[ReaderRow]) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Return embeddings (B, S, D), positions (B, S), who sees whom (B, S, P + S), where to predict, two (N,)."""
        device, before = self.lm.device, self.prefix.length
        longest = max(row.width for row in rows)
        positions = torch.zeros(len(rows), longest, dtype=torch.long)
        owner = torch.full((len(rows), longest), -1)  # 0: the beginning, n: the n-th branch, -1: padding
        wanted: tuple[list[int], list[int]] = ([], [])
        embeds = []
        for place, row in enumerate(rows):
            start = len(row.beginning)
            positions[place, :start] = torch.arange(before, before + start)
            owner[place, :start] = 0
            ids: list[int] = []
            for number, branch in enumerate(row.branches, 1):
                here, count = start + len(ids), len(branch.token_ids) - 1
                positions[place, here : here + count] = torch.arange(before + start, before + start + count)
                owner[place, here : here + count] = number
                # The first token of a branch that is all to be predicted follows from the last of the beginning.
                ends = range(here + count - branch.predicted, here + count)
                wanted[0].extend([place] * branch.predicted)
                wanted[1].extend(start - 1 if end < here else end for end in ends)
                ids += branch.token_ids[:-1]
            own = torch.cat([row.beginning.to(self.lm.dtype), self.lm.embed(torch.tensor(ids, dtype=torch.long))])
            embeds.append(torch.nn.functional.pad(own, (0, 0, 0, longest - len(own))))
        same = (owner[:, :, None] == owner[:, None, :]) | (owner[:, None, :] == 0)
        causal = torch.ones(longest, longest, dtype=torch.bool).tril()
        seen = same & causal  # (B, S, S); padding sees padding: a row of the softmax without any would be NaN
        seen = torch.cat([torch.ones(len(rows), longest, before, dtype=torch.bool), seen], dim=-1)
        return torch.stack(embeds), positions.to(device), seen.to(device), (
            torch.tensor(wanted[0], device=device), torch.tensor(wanted[1], device=device)
        )  # fmt: skip


def slides_window(config: Any) -> bool:
    """Tell whether any layer of a model sees only a sliding window."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return SLIDING in kinds
    return bool(getattr(config, "sliding_window", None)) and getattr(config, "use_sliding_window", True) is not False
