"""The transforms by name. Main entry: `build_transform()`.

Each transform is an nn.Module: (T, D) -> (T, D) or (B, T, D) -> (B, T, D), in any float dtype, which it keeps.
Gradients flow through every differentiable operation. Rows of a batch do not influence one another; random draws differ
from row to row. "Nearest" always means the largest cosine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from latentwire.harness.errors import UserError
from latentwire.harness.registry import check_dials, dials_of
from latentwire.harness.results import JsonObject
from latentwire.lm.vocabulary import Vocabulary
from latentwire.transforms import auto, codebook, fitted, scaling, tokens  # noqa: F401 (they register transforms)
from latentwire.transforms.base import EMBEDDINGS, PAIRS, TRANSFORMS, Transform, register_transform

__all__ = ["TRANSFORMS", "Chain", "build_transform", "is_fitted", "read_label", "transform_plugins"]


def build_transform(name: str, dials: Mapping[str, object], vocabulary: Vocabulary) -> Transform:
    """Build a transform in evaluation mode, on the vocabulary's device.

    Args:
        name: Name of the transform.
        dials: Its dials.
        vocabulary: The token embeddings to repair towards.

    Raises:
        UserError: The name is unknown, or a dial is unknown, missing or out of range.

    >>> import torch
    >>> vocabulary = Vocabulary(torch.eye(4))
    >>> build_transform("rms_matching", {"target_scale": 1.0}, vocabulary)(torch.full((1, 4), 3.0))
    tensor([[0.5000, 0.5000, 0.5000, 0.5000]])
    """
    transform = TRANSFORMS[name]
    check_dials(name, dials, transform)
    return transform(vocabulary, **dials).eval()


@register_transform("chain", label="{steps}")
class Chain(Transform):
    """Applies other transforms one after the other.

    A step that needs a fit is fitted on the output of the steps before it.

    Args:
        vocabulary: The token embeddings to repair towards.
        steps: Names of configurations, joined by +, for example rms_scale1.0+anchor_eps0.05.
    """

    def __init__(self, vocabulary: Vocabulary, *, steps: str) -> None:
        super().__init__(vocabulary)
        self.names = steps.split("+")
        self.parts = [build_transform(*read_label(name), vocabulary) for name in self.names]
        self.modules_of_parts = nn.ModuleList(self.parts)  # registers the steps, for .to() and state_dict()
        needed = {step.fits for step in self.parts}
        self.fits = PAIRS if PAIRS in needed else EMBEDDINGS if EMBEDDINGS in needed else ""
        gradients = {step.gradient for step in self.parts}
        self.gradient = (
            "none" if "none" in gradients else "straight_through" if "straight_through" in gradients else "own"
        )

    def fit(self, x: Tensor, truth: Tensor | None, generator: torch.Generator) -> None:
        """Fit the steps in order; arguments as in `Transform.fit`."""
        for name, step in zip(self.names, self.parts, strict=True):
            if step.fits:
                step.fit(x, truth if step.fits == PAIRS else None, generator)
                self.diagnosis[name] = step.diagnosis
            x = step(x, generator)

    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return last(... second(first(x)))."""
        for step in self.parts:
            x = step(x, generator)
        return x


def read_label(label: str) -> tuple[str, JsonObject]:
    """Return the name and the dials of a configuration, such as anchor_offset and {"eps": 0.05} for anchor_eps0.05.

    Raises:
        UserError: No configuration has this name.
    """
    found = _read(label)
    if found is None:
        raise UserError(
            f"steps=...{label}...: no configuration has this name; join names that task=list sweep=embed_plus prints, "
            "such as rms_scale1.0+anchor_eps0.05"
        )
    if (written := TRANSFORMS[found[0]].label.format(**found[1])) != label:
        raise UserError(f"steps=...{label}...: not the name of a configuration; write {written}")
    return found


def _read(label: str) -> tuple[str, JsonObject] | None:
    """Return the first transform whose label fits, with its dials, or None. A chain cannot be a step of a chain."""
    for name, transform in TRANSFORMS.items():
        dials = dials_of(transform)
        pattern = re.escape(transform.label)
        for dial in re.findall(r"{(\w+)}", transform.label):
            value = r"[-+.\de]+" if dials[dial].kind in (int, float) else "[^+]+"
            pattern = pattern.replace(re.escape(f"{{{dial}}}"), f"(?P<{dial}>{value})")
        if transform is not Chain and (found := re.fullmatch(pattern, label)):
            try:
                return name, {dial: dials[dial].read(text) for dial, text in found.groupdict().items()}
            except ValueError:
                continue
    return None


def _parts(name: str, dials: Mapping[str, object]) -> list[str]:
    """Return the names of the transforms that a configuration uses: its own, and of a chain also the steps'.

    Unknown names are left out: building the transform raises the error.
    """
    if name not in TRANSFORMS:
        return []
    steps = str(dials.get("steps")).split("+") if TRANSFORMS[name] is Chain else []
    return [name, *(found[0] for step in steps if (found := _read(step)))]


def is_fitted(name: str, dials: Mapping[str, object]) -> bool:
    """Return whether a configuration, or a step of a chain, is fitted to the source."""
    return any(TRANSFORMS[part].fits for part in _parts(name, dials))


def transform_plugins(name: str, dials: Mapping[str, object]) -> dict[str, str]:
    """Return the digests of the plugins that define a configuration's transform or its steps, for its identity."""
    return TRANSFORMS.plugin_sources(_parts(name, dials))
