"""Encoders that pool the states of a passage's tokens to fewer positions. Main entry: `PooledEncoder`."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from latentwire.encoders.base import Encoder, LMFacts, Passages, zeros
from latentwire.encoders.grouping import (
    FORMAT,
    bounds_around,
    choose_heads,
    group_bounds,
    information,
    pooling_matrix,
    word_begins,
)
from latentwire.harness.errors import UserError
from latentwire.transforms.base import require

GROUPS = ("equal", "words")
POOLS = ("mean", "query")
GATE_OFFSET = 2.0  # subtracted before the sigmoid for tokens that are not heads: their gates start at .24


class PooledEncoder(Encoder):
    """The base class of encoders in which `ratio` tokens become one latent; a subclass implements `states`.

    A passage of T tokens becomes ceil(T / ratio) positions. The last `markers` of them are learned vectors, the same
    for every passage. Each other position holds a group of neighbouring tokens:

    - `groups=equal`: groups of nearly equal size. A latent starts as the mean of its group.
    - `groups=words`: each group has one head and the tokens before it. Heads are whole words with the most information,
      by their frequency in the training passages. A latent starts as its head plus a small share of the other tokens.

    A latent has two parts: the sum (`words`) or mean (`equal`) of its group's gated token embeddings, and the mean of a
    linear map of the tokens' states. The first part matters because a frozen LM processes tokens well, sums of a few
    tokens somewhat, and other states not at all.

    With `pool=query` each group attends once more to the whole passage, as in ARC-Encoder (arXiv 2510.20535). There the
    last layer's attention does this. Here a separate attention does, which works for any architecture and adds nothing
    at the start.

    Args:
        lm: What the encoder knows of the LM.
        ratio: Number of tokens for each latent.
        groups: One of GROUPS.
        pool: One of `pools`.
        markers: Number of learned vectors at the end, which are among the positions.

    Raises:
        UserError: A dial is out of range.
    """

    needs_lm_config = True
    any_ratio = True
    pools: tuple[str, ...] = POOLS
    information: Tensor  # (V,) information of each token in nats; only for groups=words
    begins: Tensor  # (V,) whether each token begins a word; only for groups=words

    def __init__(self, lm: LMFacts, ratio: int, groups: str, pool: str, markers: int) -> None:
        super().__init__(lm)
        require(ratio >= 1, "ratio", ratio, "is the number of tokens for each position: must be at least 1")
        require(markers >= 0, "markers", markers, "must be 0 or more")
        for dial, value, known in (("groups", groups, GROUPS), ("pool", pool, self.pools)):
            if value not in known:
                raise UserError(f"{dial}={value}: unknown; use one of {', '.join(known)}")
        self.ratio, self.pool, self.z_width, self.reads_ids = ratio, pool, lm.width, groups == "words"
        self.gate, self.addition = zeros(nn.Linear(lm.width, 1)), zeros(nn.Linear(lm.width, lm.width))
        self.pooling = QueryPooling(lm.width) if pool == "query" else None
        self.markers = nn.Parameter(torch.randn(markers, lm.width)) if markers else None
        if self.reads_ids:
            size = config_size(lm.config, "vocab_size")
            self.register_buffer("information", torch.zeros(size))
            self.register_buffer("begins", torch.ones(size, dtype=torch.bool))

    @property
    def shortest(self) -> int:  # type: ignore[override]
        """Fewest tokens of a passage: one latent besides the markers."""
        return self.ratio * (1 + self.marked)

    @property
    def marked(self) -> int:
        """Number of markers."""
        return 0 if self.markers is None else len(self.markers)

    def learn(self, texts: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> None:
        """Set the information of each token from word counts, for `groups=words`."""
        if self.reads_ids:
            self.begins.copy_(word_begins(tokenizer, len(self.begins)))
            self.information.copy_(information(texts, self.begins))

    @classmethod
    def versions(cls, dials: Mapping[str, object]) -> dict[str, int]:
        """Return the version of the grouping by words, for `groups=words`."""
        return {"words": FORMAT} if dials["groups"] == "words" else {}

    def positions(self, tokens: int) -> int:
        """Return ceil(T / ratio).

        Raises:
            UserError: The passage has fewer than `ratio` tokens for each marker and one latent.
        """
        if self.shortest > tokens:
            most = max(1, tokens // (1 + self.marked))
            markers = f" with markers={self.marked}" if self.marked else ""
            raise UserError(
                f"ratio={self.ratio}{markers}: more than the {tokens} tokens of a passage; use an encoder with "
                f"ratio={most} or less, or leave that passage out"
            )
        return math.ceil(tokens / self.ratio)

    def token_positions(self, tokens: int) -> slice:
        """Return the positions before the markers."""
        return slice(0, self.positions(tokens) - self.marked)

    @abstractmethod
    def states(self, passages: Passages) -> Tensor:
        """Return a state for each token, (B, T, D), or for each group if the encoder has pooled them, (B, L, D)."""

    def forward(self, passages: Passages) -> Tensor:
        """Return the pooled states, then the markers: (B, L, D)."""
        hidden = self.states(passages)
        heads, sums, means = self._pooling_matrices(passages)  # (B, L, T) each
        added = self.addition(hidden)
        units = passages.embeds / self.mean_token_rms
        if hidden.shape[1] != units.shape[1]:  # pooled by the encoder
            pooled: Tensor = means @ units + added[:, : means.shape[1]]
        else:
            gates = self.gate(hidden)  # (B, T, 1)
            if self.reads_ids:
                gates = gates - GATE_OFFSET * (1 - heads.sum(dim=1).unsqueeze(-1))
            gated = 2 * gates.sigmoid() * units  # (B, T, D)
            pooled = sums @ gated + means @ added  # (B, L, T) (B, T, D) -> (B, L, D)
            if self.pooling is not None:
                pooled = self.pooling(pooled, gated + added, passages.mask)
        return pooled if self.markers is None else self._followed_by(self.markers, pooled, passages)

    def _followed_by(self, markers: Tensor, pooled: Tensor, passages: Passages) -> Tensor:
        """Return each passage's latents followed by the markers: (B, L - markers, D) -> (B, L, D)."""
        counts = [self.positions(tokens) - len(markers) for tokens in passages.lengths]
        rows = [torch.cat([own[:n], markers]) for own, n in zip(pooled, counts, strict=True)]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def stands_for(self, passages: Passages) -> Tensor:
        """Return the mean of the group or the head that each latent represents, 0 for markers: (B, L, D)."""
        own = self._pooling_matrices(passages)[0] @ passages.embeds
        return nn.functional.pad(own, (0, 0, 0, self.marked))

    def equal_groups(self, tokens: int) -> list[tuple[int, int]]:
        """Return the groups of a passage for `groups=equal`: first token of each, and the token after its last."""
        return group_bounds(tokens, self.positions(tokens) - self.marked)

    def _pooling_matrices(self, passages: Passages) -> tuple[Tensor, Tensor, Tensor]:
        """Return the weights of each token in each latent, (B, L - markers, T) each.

        Returns:
            The weights in the embedding that the latent represents, of gated embeddings, and of the tokens' states.
        """
        longest, device = passages.embeds.shape[1], passages.embeds.device
        counts = [self.positions(tokens) - self.marked for tokens in passages.lengths]
        if not self.reads_ids:
            means = pooling_matrix(longest, [self.equal_groups(tokens) for tokens in passages.lengths]).to(device)
            return means, means, means
        assert passages.ids is not None, "groups=words needs the token ids"
        chosen_heads = [
            choose_heads(self.information[ids].tolist(), self.begins[ids].tolist(), n)
            for ids, n in zip(passages.ids, counts, strict=True)
        ]
        heads = pooling_matrix(longest, [[(head, head + 1) for head in own] for own in chosen_heads]).to(device)
        groups = [bounds_around(own, tokens) for own, tokens in zip(chosen_heads, passages.lengths, strict=True)]
        means = pooling_matrix(longest, groups).to(device)
        return heads, means.sign(), means


def config_size(config: Mapping[str, object], name: str) -> int:
    """Return a size in the LM's config.

    Raises:
        TypeError: The config has no such whole number.
    """
    size = config[name]
    if not isinstance(size, int):
        raise TypeError(f"{name}={size!r} of the LM's config is not a whole number")
    return size


class QueryPooling(nn.Module):
    """Lets latents attend once more to the whole passage; at the start this adds nothing.

    Args:
        width: Width of the embeddings, D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        heads = next(heads for heads in (8, 4, 2, 1) if width % heads == 0)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        zeros(self.attention.out_proj)

    def forward(self, queries: Tensor, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return queries + attention(queries, hidden).

        Args:
            queries: Pooled groups, (B, L, D).
            hidden: Outputs to attend to, (B, T, D).
            mask: True on real tokens, (B, T).

        Returns:
            (B, L, D).
        """
        keys = self.norm(hidden)
        attended, _ = self.attention(self.norm(queries), keys, keys, key_padding_mask=~mask, need_weights=False)
        result: Tensor = queries + attended
        return result
