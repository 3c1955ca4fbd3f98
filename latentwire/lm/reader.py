"""Forward passes of a frozen LM over latents, with gradients to its inputs. Main entry: `Reader`.

A row holds the embeddings of one passage, followed by branches. A branch is a question with its answer. Branches do not
attend to one another, so the LM encodes the passage once for all its questions. The keys and values of the shots are
computed once, without gradients, and all rows attend to that one copy where the LM's attention allows it. The LM's own
weights are never trained.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig

from latentwire.harness.errors import UserError
from latentwire.lm.attention import SHARED_PREFIX, additive
from latentwire.lm.decoding import Prefix, can_share, switched_attention
from latentwire.lm.models import LanguageModel, layers_of

FULL, SLIDING = "full_attention", "sliding_attention"  # names of layer types in transformers


@dataclass(frozen=True)
class ReaderBranch:
    """Tokens that follow a passage; the LM is to predict the last ones."""

    token_ids: tuple[int, ...]
    predicted: int  # number of tokens to predict, at the end of `token_ids`

    @property
    def targets(self) -> tuple[int, ...]:
        """The tokens to predict."""
        return self.token_ids[len(self.token_ids) - self.predicted :]


@dataclass(frozen=True)
class ReaderRow:
    """The embeddings of a passage, and its branches."""

    beginning: Tensor  # (C, D): 'Context:' and the passage's tokens or latents
    branches: tuple[ReaderBranch, ...]

    @property
    def width(self) -> int:
        """Number of positions; the last token of a branch needs none, since it is only predicted."""
        return len(self.beginning) + sum(len(branch.token_ids) - 1 for branch in self.branches)


class Reader:
    """Runs the LM over rows that follow a prefix.

    Args:
        lm: The frozen LM.
        prefix: Keys and values of the shots.

    Raises:
        UserError: The LM has layers with other attention than full or sliding.
    """

    def __init__(self, lm: LanguageModel, prefix: Prefix) -> None:
        self.lm, self.prefix = lm, prefix
        self.body, self.head = lm.model.base_model, lm.model.get_output_embeddings()
        config = lm.model.config.get_text_config()
        self.cap: float | None = getattr(config, "final_logit_softcapping", None)
        self.kinds = set(getattr(config, "layer_types", None) or ())
        if unsupported := sorted(self.kinds - {FULL, SLIDING}):
            raise UserError(
                f"{type(lm.model).__name__}: has layers of {', '.join(unsupported)}, which cannot separate branches; "
                f"choose another model=..., with layers of {FULL} or {SLIDING} only"
            )
        self.shares = can_share(lm, prefix)
        self.window: int | None = getattr(config, "sliding_window", None) if slides_window(config) else None

    def after(self, prefix: Prefix) -> Reader:
        """Return a reader for rows that follow another prefix; an empty prefix only in place of an empty one."""
        again = copy.copy(self)
        again.prefix = prefix
        return again

    def targets(self, rows: list[ReaderRow]) -> Tensor:
        """Return the ids of the tokens to predict, row by row and branch by branch: (N,)."""
        ids = [token for row in rows for branch in row.branches for token in branch.targets]
        return torch.tensor(ids, device=self.lm.device)

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits for final hidden states: (N, D) -> (N, V)."""
        logits: Tensor = self.head(states)
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def states(self, rows: list[ReaderRow]) -> Tensor:
        """Return the final hidden states that predict the `targets`, in the same order.

        Args:
            rows: Rows of one batch.

        Returns:
            The hidden states, (N, D), with gradients to the rows' `beginning`.

        Raises:
            UserError: The rows are longer than the LM's context.
        """
        states, _ = self.layer_states(rows, [])
        return states

    def layer_states(self, rows: list[ReaderRow], layers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the states that predict the `targets`, after the last layer and after some others.

        Args:
            rows: Rows of one batch.
            layers: Indices of the layers.

        Returns:
            The final states, (N, D), as `states` gives them, and the outputs of the layers, (layers, N, D).

        Raises:
            UserError: The rows are longer than the LM's context.
        """
        self.require_room(max(len(r.beginning) + max(len(b.token_ids) for b in r.branches) for r in rows))
        embeds, positions, visible, (row, place) = self._lay_out(rows)
        outputs: dict[int, Tensor] = {}

        def keep(layer: int) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
                outputs[layer] = (output if isinstance(output, Tensor) else output[0])[row, place]

            return hook

        everything = layers_of(self.lm) if layers else []
        hooks = [everything[layer].register_forward_hook(keep(layer)) for layer in layers]
        try:
            hidden = self._run(embeds, positions, visible)  # (B, S, D)
        finally:
            for handle in hooks:
                handle.remove()
        chosen = [outputs[layer] for layer in layers]
        return hidden[row, place], torch.stack(chosen) if chosen else hidden.new_zeros(0, len(row), hidden.shape[-1])

    def _run(self, embeds: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        """Return the final hidden states of all positions, (B, S, D); arguments as `_lay_out` returns them."""
        inputs = {"inputs_embeds": embeds, "position_ids": positions}
        if self.shares:
            own = additive(visible[:, :, self.prefix.length :], self.lm.dtype)[:, None]  # (B, 1, S, S)
            options = {"shared_prefix": self.prefix.layers, "by_products": True}
            with switched_attention(self.lm, SHARED_PREFIX):
                output = self.body(**inputs, **options, attention_mask=own, use_cache=False)
        else:
            cache, rows = DynamicCache(), len(embeds)
            for layer, (keys, values) in enumerate(self.prefix.layers):
                cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
            masks = self._masks(visible, positions)
            output = self.body(**inputs, attention_mask=masks, past_key_values=cache, use_cache=True)
        hidden: Tensor = output.last_hidden_state
        return hidden

    def require_room(self, positions: int, shots: int | None = None) -> None:
        """Check that the LM's context has room for the prefix and further positions.

        Args:
            positions: Number of positions after the prefix.
            shots: Length of the prefix; None: of the reader's own.

        Raises:
            UserError: The context is too short.
        """
        shots = self.prefix.length if shots is None else shots
        longest = shots + positions
        if longest > self.lm.context_length:
            raise UserError(
                f"shots: with {shots} tokens of shots a passage and its question take {longest} "
                f"positions, more than the model's {self.lm.context_length}; lower shots, or leave out long passages"
            )

    def _masks(self, visible: Tensor, positions: Tensor) -> Tensor | dict[str, Tensor]:
        """Return the mask to add to the scores, (B, 1, S, P + S), one for each layer type if some layers slide.

        transformers uses a mask of four dimensions unchanged.

        Args:
            visible: Whether each position (row) attends to each column, (B, S, P + S).
            positions: Position ids, (B, S).
        """
        full = additive(visible, self.lm.dtype)[:, None]
        if self.window is None:
            return full
        shots = torch.arange(self.prefix.length, device=positions.device).expand(len(positions), -1)
        in_window = positions[:, :, None] - torch.cat([shots, positions], dim=1)[:, None] < self.window
        sliding = additive(visible & in_window, self.lm.dtype)[:, None]
        return {FULL: full, SLIDING: sliding} if self.kinds else sliding

    def _lay_out(self, rows: list[ReaderRow]) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Return the tensors of a batch of rows.

        Returns:
            Embeddings, (B, S, D). Position ids, (B, S). Whether each position attends to each column, (B, S, P + S).
            The row and the position of each prediction, both (N,).
        """
        device, prefix_length = self.lm.device, self.prefix.length
        longest = max(row.width for row in rows)
        positions = torch.zeros(len(rows), longest, dtype=torch.long)
        owner = torch.full((len(rows), longest), -1)  # 0: the beginning, n: the n-th branch, -1: padding
        predicted: tuple[list[int], list[int]] = ([], [])
        embeds = []
        for place, row in enumerate(rows):
            start = len(row.beginning)
            positions[place, :start] = torch.arange(prefix_length, prefix_length + start)
            owner[place, :start] = 0
            ids: list[int] = []
            for number, branch in enumerate(row.branches, 1):
                here, count = start + len(ids), len(branch.token_ids) - 1
                first = prefix_length + start
                positions[place, here : here + count] = torch.arange(first, first + count)
                owner[place, here : here + count] = number
                # If a whole branch is to be predicted, the last position of the beginning predicts its first token.
                ends = range(here + count - branch.predicted, here + count)
                predicted[0].extend([place] * branch.predicted)
                predicted[1].extend(start - 1 if end < here else end for end in ends)
                ids += branch.token_ids[:-1]
            own = torch.cat([row.beginning.to(self.lm.dtype), self.lm.embed(torch.tensor(ids, dtype=torch.long))])
            embeds.append(torch.nn.functional.pad(own, (0, 0, 0, longest - len(own))))
        same = (owner[:, :, None] == owner[:, None, :]) | (owner[:, None, :] == 0)
        causal = torch.ones(longest, longest, dtype=torch.bool).tril()
        visible = same & causal  # (B, S, S); padding attends to padding, as a softmax over no column would be NaN
        visible = torch.cat([torch.ones(len(rows), longest, prefix_length, dtype=torch.bool), visible], dim=-1)
        return torch.stack(embeds), positions.to(device), visible.to(device), (
            torch.tensor(predicted[0], device=device), torch.tensor(predicted[1], device=device)
        )  # fmt: skip


def slides_window(config: PretrainedConfig) -> bool:
    """Return whether any layer of a model attends only to a sliding window."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return SLIDING in kinds
    return bool(getattr(config, "sliding_window", None)) and getattr(config, "use_sliding_window", True) is not False
