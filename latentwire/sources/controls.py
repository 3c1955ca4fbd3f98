"""Controls for a trained encoder: `Cut`, `ChosenWords` and `Averaged` with as many positions, and `Empty`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from latentwire.encoders.checkpoint import load_latents
from latentwire.encoders.grouping import choose_heads, group_means, information, word_begins
from latentwire.encoders.pooled import PooledEncoder
from latentwire.harness.errors import UserError
from latentwire.lm.vocabulary import Vocabulary
from latentwire.sources.base import Source, register_source
from latentwire.transforms.base import require


@register_source("cut", label="cut{ratio}", unlabelled=("positions",))
class Cut(Source):
    """Control: the first tokens of the passage, ceil(T / ratio) of them, or `positions` if that is given."""

    passage_only = True

    def __init__(
        self, vocabulary: Vocabulary, generator: torch.Generator, *, ratio: float, positions: int | None
    ) -> None:
        super().__init__(vocabulary, generator)
        require(ratio >= 1 and math.isfinite(ratio), "ratio", ratio, "tokens for each position: must be 1 or more")
        require(positions is None or positions >= 1, "positions", positions or 0, "must be at least 1")
        self.ratio, self.max_positions = ratio, positions

    def positions(self, tokens: int) -> int:
        """Return the number of tokens kept out of `tokens`."""
        return math.ceil(tokens / self.ratio) if self.max_positions is None else min(tokens, self.max_positions)

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the first positions of x: (T, D) -> (L, D)."""
        return x[: self.positions(len(x))]


@register_source("averaged", label="averaged{ratio}", unlabelled=("positions",))
class Averaged(Cut):
    """Control: means of neighbouring tokens, without training; as many positions as `Cut` keeps tokens.

    The tokens are split into groups of nearly equal size.
    """

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the means of the groups: (T, D) -> (L, D)."""
        return group_means(x, self.positions(len(x)))


@register_source("chosen", label="chosen{ratio}", unlabelled=("positions", "checkpoint"))
class ChosenWords(Cut):
    """Control: the words with the most information, as real tokens in the order of the text, without training.

    They are the tokens that get positions of their own with `encoder=lm_layers groups=words`, as many as `Cut` keeps.

    Args:
        vocabulary: The token embeddings of the LM.
        generator: Unused.
        ratio: Number of tokens for each position.
        positions: Number of positions; None: T / ratio.
        checkpoint: Folder of an encoder whose word information decides the choice. "", or an encoder without word
            information: the words are counted in the passages outside the evaluation.

    Raises:
        UserError: A dial is out of range, or the checkpoint cannot be loaded.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        generator: torch.Generator,
        *,
        ratio: float,
        positions: int | None,
        checkpoint: str,
    ) -> None:
        super().__init__(vocabulary, generator, ratio=ratio, positions=positions)
        self.words: tuple[Tensor, Tensor] | None = None  # information of each token, and whether it begins a word: (V,)
        if checkpoint:
            encoder = load_latents(checkpoint, vocabulary).encoder
            if isinstance(encoder, PooledEncoder) and encoder.reads_ids:
                self.words = encoder.information, encoder.begins

    @classmethod
    def encoder_folder(cls, dials: Mapping[str, object]) -> str | None:
        """Return the folder of the encoder, or None without one."""
        return str(dials["checkpoint"]) if dials["checkpoint"] else None

    def learn(self, passages: Sequence[Tensor], tokenizer: PreTrainedTokenizerBase) -> None:
        """Count the words of the passages, unless an encoder gave their information.

        Raises:
            UserError: No passages are given.
        """
        if self.words is not None:
            return
        if not passages:
            raise UserError(
                "source chosen: counts words in passages outside the evaluation, and the data have none; lower "
                "samples, give another file for the shots (shots_path=FILE), or the checkpoint of an encoder with "
                "groups=words"
            )
        begins = word_begins(tokenizer, self.vocabulary.size)
        self.words = information((ids.tolist() for ids in passages), begins), begins

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the embeddings of the chosen tokens: (T, D) -> (L, D)."""
        assert self.words is not None, "learn() comes before the first passage"
        ids = self.vocabulary.nearest(x, 1).flatten()  # x holds real tokens, so the nearest token is the token itself
        said, begins = (values[ids.to(values.device)].tolist() for values in self.words)
        return x[choose_heads(said, begins, self.positions(len(x)))]


@register_source("empty", label="empty")
class Empty(Source):
    """Control: no passage."""

    passage_only = True

    def positions(self, tokens: int) -> int:
        """Return 0."""
        return 0

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return no positions: (T, D) -> (0, D)."""
        return x[:0]
