"""The base class of all transforms, their registry, and checks of their dials. Main entry: `Transform`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from latentwire.harness.errors import UserError
from latentwire.harness.registry import ClassRegistry, node_with_dials
from latentwire.harness.results import JsonObject
from latentwire.lm.vocabulary import Vocabulary

# What fit() needs of the source:
EMBEDDINGS, PAIRS = "unlabelled embeddings", "pairs of embedding and true token"
# The gradient with which an encoder is trained through a transform:
# - "own": the derivative of the result.
# - "straight_through": the gradient of the input, scaled to the length of tokens. For transforms whose own derivative
#   is almost zero, because the result is a token and a short residual.
# - "none": the result does not depend on the input, so an encoder cannot be trained through it.
Gradient = Literal["own", "straight_through", "none"]


class Transform(nn.Module, ABC):
    """Checks shapes, computes in at least float32, and returns the dtype of its input.

    A subclass implements `repair`, and `fit` if it learns from a source. Its dials are keyword-only arguments.

    Args:
        vocabulary: The token embeddings to repair towards.

    >>> class Halved(Transform):
    ...     def repair(self, x, generator):
    ...         return x / 2
    >>> Halved(Vocabulary(torch.eye(4)))(torch.ones(1, 4, dtype=torch.bfloat16))
    tensor([[0.5000, 0.5000, 0.5000, 0.5000]], dtype=torch.bfloat16)
    """

    label: ClassVar[str]  # pattern of a configuration's name, set by `register_transform`
    fits: str = ""  # what fit() needs: "" (never fitted), EMBEDDINGS or PAIRS
    gradient: Gradient = "own"

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.diagnosis: JsonObject = {}  # findings of fit(); the transform decides their names

    def fit(self, x: Tensor, truth: Tensor | None, generator: torch.Generator) -> None:
        """Learn from the embeddings of a source, for transforms with `fits`.

        Args:
            x: Embeddings from the source, (N, D) float32 or float64.
            truth: Embeddings of the true tokens, (N, D), if `fits` is PAIRS; otherwise None.
            generator: CPU generator of all random draws.

        Raises:
            UserError: The embeddings do not suffice for a fit.
            NotImplementedError: The transform has no `fits`.
        """
        raise NotImplementedError(f"{type(self).__name__} is not fitted")

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Repair embeddings. A transform may write into what it gets, which is a copy.

        Args:
            x: Embeddings, (T, D) or (B, T, D), any float dtype. They stay as they are.
            generator: CPU generator of the transform's random draws.

        Returns:
            Embeddings of the same shape, dtype and device.

        Raises:
            ValueError: x has another shape, or is not of a float dtype.
            UserError: `repair` returns another shape.
        """
        if x.ndim not in (2, 3) or x.shape[-1] != self.vocabulary.width or not x.is_floating_point():
            raise ValueError(
                f"expected floats of shape (T, {self.vocabulary.width}) or (B, T, {self.vocabulary.width}), "
                f"got {x.dtype} {tuple(x.shape)}"
            )
        found = self.repair(x.to(torch.promote_types(x.dtype, torch.float32), copy=True), generator)
        if not isinstance(found, Tensor) or found.shape != x.shape:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UserError(
                f"transform {TRANSFORMS.name_of(type(self)) or type(self).__name__}: repair returned {shape}, expected "
                f"{tuple(x.shape)}; return a tensor of the shape of x"
            )
        return found.to(x.dtype)

    @abstractmethod
    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Repair embeddings in float32 or float64, (T, D) or (B, T, D)."""

    def tokens(self, ids: Tensor, like: Tensor) -> Tensor:
        """Return the embeddings of token ids in the dtype of `like`: (...) -> (..., D)."""
        return self.vocabulary.embeddings[ids.to(self.vocabulary.embeddings.device)].to(like)


def _node(name: str, transform: type[Transform]) -> JsonObject:
    return node_with_dials("embed_transform", name, transform, transform.label)


TRANSFORMS: ClassRegistry[Transform] = ClassRegistry("transform", "embed_transform", _node)
T = TypeVar("T", bound=Transform)


def register_transform(name: str, *, label: str, unlabelled: tuple[str, ...] = ()) -> Callable[[type[T]], type[T]]:
    """Return a decorator that registers a transform.

    Args:
        name: Name of the transform, for embed_transform=NAME.
        label: Pattern of a configuration's name, with dials in braces: "anchor_eps{eps}".
        unlabelled: Dials that no name can show, such as paths. The label has every other dial.

    Raises:
        UserError: The decorator raises it if the name or the label is taken, or the label or
            `gradient` is invalid.
    """

    def register(transform: type[T]) -> type[T]:
        if transform.gradient not in get_args(Gradient):
            known = ", ".join(get_args(Gradient))
            raise UserError(f"transform {name}: gradient={transform.gradient!r}: unknown; use one of {known}")
        TRANSFORMS.add_class(name, transform, label, unlabelled)
        return transform

    return register


def require(condition: bool, dial: str, value: float, reason: str) -> None:
    """Raise UserError with the dial, its value and the reason unless the condition holds."""
    if not condition:
        raise UserError(f"{dial}={value}: {reason}")


def require_within_vocabulary(dial: str, value: int, vocabulary: Vocabulary) -> None:
    """Raise UserError unless the value is between 1 and the number of tokens."""
    reason = f"must be between 1 and the vocabulary's {vocabulary.size} tokens"
    require(1 <= value <= vocabulary.size, dial, value, reason)


def require_temperature(value: float) -> None:
    """Raise UserError unless the value of the dial `tau` is finite and above 0."""
    require(value > 0 and math.isfinite(value), "tau", value, "is a temperature, above 0")
