"""What every transform keeps: shapes, dtypes, dials, and the way those are fitted that learn from a source."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from latentwire.harness.errors import UserError
from latentwire.lm.vocabulary import Vocabulary

EMBEDDINGS, PAIRS = "unlabelled embeddings", "pairs of embedding and true token"


class Transform(nn.Module, ABC):
    """Checks shapes, computes in at least float32, returns the dtype it was given.

    Args:
        vocabulary: The token embeddings to repair towards.
    """

    fits: str = ""  # what fit() wants to see before: nothing, EMBEDDINGS, or PAIRS

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.diagnosis: dict[str, Any] = {}  # what fit() found, plain values

    def fit(self, x: Tensor, truth: Tensor | None, generator: torch.Generator) -> None:
        """Learn from the embeddings of a source; only of those transforms whose `fits` says so.

        Args:
            x: Embeddings as the source gives them, unlabelled, (N, D) float32 or float64.
            truth: The embeddings of the tokens that they stand for, (N, D), where `fits` is PAIRS; else None.
            generator: CPU generator of whatever is drawn.

        Raises:
            UserError: Nothing can be learnt from them.
        """
        raise NotImplementedError(f"{type(self).__name__} is not fitted")

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Repair embeddings.

        Args:
            x: Embeddings, (T, D) or (B, T, D).
            generator: CPU generator of whatever the transform draws at random.

        Returns:
            Embeddings of the same shape, dtype and device.
        """
        if x.ndim not in (2, 3) or x.shape[-1] != self.vocabulary.width or not x.is_floating_point():
            raise ValueError(
                f"expected floats of shape (T, {self.vocabulary.width}) or (B, T, {self.vocabulary.width}), "
                f"got {x.dtype} {tuple(x.shape)}"
            )
        return self.repair(x.to(torch.promote_types(x.dtype, torch.float32)), generator).to(x.dtype)

    @abstractmethod
    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Repair embeddings in float32 or float64, (T, D) or (B, T, D)."""

    def tokens(self, ids: Tensor, like: Tensor) -> Tensor:
        """Return the embeddings of token ids in the dtype of `like`: (...) -> (..., D)."""
        return self.vocabulary.embeddings[ids.to(self.vocabulary.embeddings.device)].to(like)


def check_dials(name: str, dials: dict[str, Any], owner: type) -> None:
    """Compare dials with the keyword-only arguments of the class that takes them.

    Raises:
        UserError: Naming the stray or missing dial and those that exist.
    """
    parameters = inspect.signature(owner).parameters.values()
    wanted = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    known = ", ".join(sorted(wanted)) or "none"
    for dial in sorted(dials.keys() - wanted):
        raise UserError(f"{dial}={dials[dial]}: {name} has no such dial (its dials: {known}); leave it out")
    for dial in sorted(wanted - dials.keys()):
        raise UserError(f"{name} needs {dial} (its dials: {known}); give it a value")


def require(condition: bool, dial: str, value: float, reason: str) -> None:
    """Raise UserError with the dial, its value and the reason unless the condition holds."""
    if not condition:
        raise UserError(f"{dial}={value}: {reason}")
