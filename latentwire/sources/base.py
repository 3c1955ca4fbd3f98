"""The base class of all sources, which is also the source `text`, and their registry. Main entry: `Source`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, TypeVar, get_args

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from latentwire.analysis.ladder import Axis, Ladder
from latentwire.encoders.cost import BYTES_PER_NUMBER
from latentwire.harness.errors import UserError
from latentwire.harness.registry import ClassRegistry, dials_of, node_with_dials
from latentwire.harness.results import JsonObject
from latentwire.lm.vocabulary import Vocabulary


class Source:
    """Leaves real token embeddings unchanged; subclasses distort or replace them. Dials are keyword-only arguments.

    Args:
        vocabulary: The token embeddings of the LM.
        generator: CPU generator of the draws that all examples share.
    """

    label: ClassVar[str]  # pattern of the source's name in results, set by `register_source`
    ladders: ClassVar[tuple[Ladder, ...]] = ()  # set by `register_source`
    passage_only = False  # True: replaces only the passage, with any number of positions
    unchanged: ClassVar[Mapping[str, object]] = {}  # dials at values that change nothing; a result's hash lacks them

    def __init__(self, vocabulary: Vocabulary, generator: torch.Generator) -> None:
        self.vocabulary = vocabulary

    @classmethod
    def encoder_folder(cls, dials: Mapping[str, object]) -> str | None:
        """Return the folder of the trained encoder that the dials name; None for a source without one.

        Such a source is identified by the encoder's weights, and is refused for another LM than the encoder's.
        """
        return None

    @classmethod
    def replaces_shots(cls, dials: Mapping[str, object]) -> bool:
        """Return whether the source also replaces the passages of the shots, because its encoder was trained so."""
        return False

    def learn(self, passages: Sequence[Tensor], tokenizer: PreTrainedTokenizerBase) -> None:
        """Compute what the source needs from passages outside the evaluation, such as word counts, before any call.

        Args:
            passages: Token ids of the passages, each (T,).
            tokenizer: The LM's tokenizer.
        """

    def __call__(self, x: Tensor, generator: torch.Generator, passage: str = "") -> Tensor:
        """Distort or replace the embeddings of one example.

        Args:
            x: Embeddings of passage and question, or of the passage if `passage_only`, (T, D).
            generator: CPU generator of this example's draws.
            passage: The passage as text.

        Returns:
            Embeddings (T, D), or (L, D) with L >= 0 if `passage_only`, in the dtype and on the device of x.

        Raises:
            UserError: The source returns another shape.
        """
        x32 = x.to(torch.promote_types(x.dtype, torch.float32), copy=True)  # a source may write into what it gets
        found = self.replace(x32, generator, passage)
        if not isinstance(found, Tensor) or not self._fits(found.shape, x.shape):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            wanted = f"(L, {x.shape[-1]})" if self.passage_only else tuple(x.shape)
            name = SOURCES.name_of(type(self)) or type(self).__name__
            raise UserError(f"source {name}: returned {shape}, expected {wanted}; return embeddings of this shape")
        return found.to(x.dtype)

    def _fits(self, shape: torch.Size, before: torch.Size) -> bool:
        """Return whether embeddings of a shape can replace embeddings of the shape `before`, (T, D)."""
        if self.passage_only:
            return len(shape) == 2 and shape[-1] == before[-1]
        return shape == before

    def replace(self, x: Tensor, generator: torch.Generator, passage: str) -> Tensor:
        """Distort or replace x, float32 or float64; a source that needs the passage as text overrides this method."""
        return self.distort(x, generator)

    def positions(self, tokens: int) -> int:
        """Return the number of positions for a span of `tokens` tokens."""
        return tokens

    def token_positions(self, tokens: int) -> slice:
        """Return which positions stand for tokens, all of them by default; others are the same for every passage."""
        return slice(None)

    def size(self, tokens: int) -> int:
        """Return the number of bytes to transmit for a span of `tokens` tokens, in float16."""
        return BYTES_PER_NUMBER * self.positions(tokens) * self.vocabulary.width

    def distort(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return x distorted; x is float32 or float64, (T, D)."""
        return x


def _node(name: str, source: type[Source]) -> JsonObject:
    return node_with_dials("embed_source", name, source, source.label, suffix="@${.label}")


SOURCES: ClassRegistry[Source] = ClassRegistry("source", "embed_source", _node)
S = TypeVar("S", bound=Source)


def register_source(
    name: str, *, label: str, ladders: tuple[Ladder, ...] = (), unlabelled: tuple[str, ...] = ()
) -> Callable[[type[S]], type[S]]:
    """Return a decorator that registers a source.

    Args:
        name: Name of the source, for embed_source=NAME.
        label: Pattern of the source's name in results, with dials in braces: "scaled{factor}".
        ladders: Levels at which the analysis finds how much of the distortion a transform tolerates.
        unlabelled: Dials that no name can show, such as paths. The label has every other dial.

    Raises:
        UserError: The decorator raises it if the name or the label is taken, or the label or a ladder is invalid.
    """

    def register(source: type[S]) -> type[S]:
        for ladder in ladders:
            if ladder.dial not in dials_of(source):
                known = ", ".join(dials_of(source)) or "none"
                raise UserError(f"source {name}: a ladder has the dial {ladder.dial}, but its dials are {known}")
            if ladder.axis not in get_args(Axis):
                raise UserError(f"source {name}: a ladder has axis={ladder.axis!r}; use 'linear' or 'log'")
            if ladder.axis == "log" and ladder.clean is not None and ladder.clean <= 0:
                raise UserError(f"source {name}: a ladder has clean={ladder.clean} on a log axis; use one above 0")
        SOURCES.add_class(name, source, label, unlabelled)
        source.ladders = tuple(dataclasses.replace(ladder, source=name) for ladder in ladders)
        return source

    return register


register_source("text", label="text")(Source)
