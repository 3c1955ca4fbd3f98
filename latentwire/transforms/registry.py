"""The transforms by name. Main entry: `build_transform()`.

Each transform is an nn.Module: (T, D) -> (T, D) or (B, T, D) -> (B, T, D), in any float dtype, which it keeps.
Gradients flow through every differentiable operation. Rows of a batch do not influence one another; random draws differ
from row to row. "Nearest" always means the largest cosine.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from latentwire.harness.errors import UserError
from latentwire.harness.registry import check_dials
from latentwire.lm.vocabulary import Vocabulary
from latentwire.transforms.auto import Auto
from latentwire.transforms.base import EMBEDDINGS, PAIRS, Transform
from latentwire.transforms.codebook import SoftCodebook
from latentwire.transforms.fitted import MomentMatching, Procrustes, ProcrustesSupervised, Whitening
from latentwire.transforms.scaling import Baseline, BatchDistribution, RMSMatching
from latentwire.transforms.tokens import AnchorOffset, NearestK, RandomInterpolation, SoftVocab


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


LABELS = {  # names of configurations, as in conf/embed_transform
    "baseline": "baseline",
    "rms_matching": "rms_scale{target_scale}",
    "batch_distribution": "batch_distribution",
    "nearest_k": "nearest_k{k}_a{alpha}",
    "anchor_offset": "anchor_eps{eps}",
    "soft_codebook": "codebook{codebook_size}_tau{tau}",
    "soft_vocab": "soft_vocab_tau{tau}",
    "random_interpolation": "random_k{k}",
    "moment_matching": "moment_matching",
    "whitening": "whitening",
    "procrustes": "procrustes",
    "procrustes_supervised": "procrustes_supervised",
    "auto": "auto",
}
INTEGER_DIALS = {"k", "codebook_size"}


def read_label(label: str) -> tuple[str, dict[str, Any]]:
    """Return the family and the dials of a configuration, such as anchor_offset and {"eps": 0.05} for anchor_eps0.05.

    Raises:
        UserError: No configuration has this name.
    """
    for family, pattern in LABELS.items():
        found = re.fullmatch(re.sub(r"{(\w+)}", r"(?P<\1>[-+.\\de]+)", pattern), label)
        if found is None:
            continue
        try:
            dials = {
                dial: (int if dial in INTEGER_DIALS else float)(value) for dial, value in found.groupdict().items()
            }
        except ValueError:
            continue
        if (written := pattern.format(**dials)) != label:
            raise UserError(f"steps=...{label}...: not the name of a configuration; write {written}")
        return family, dials
    raise UserError(
        f"steps=...{label}...: no configuration has this name; join names that task=list sweep=embed_plus prints, "
        "such as rms_scale1.0+anchor_eps0.05"
    )


TRANSFORMS: dict[str, type[Transform]] = {
    "baseline": Baseline,
    "rms_matching": RMSMatching,
    "batch_distribution": BatchDistribution,
    "nearest_k": NearestK,
    "anchor_offset": AnchorOffset,
    "soft_codebook": SoftCodebook,
    "soft_vocab": SoftVocab,
    "random_interpolation": RandomInterpolation,
    "chain": Chain,
    "moment_matching": MomentMatching,
    "whitening": Whitening,
    "procrustes": Procrustes,
    "procrustes_supervised": ProcrustesSupervised,
    "auto": Auto,
}


def build_transform(family: str, dials: dict[str, Any], vocabulary: Vocabulary) -> Transform:
    """Build a transform in evaluation mode, on the vocabulary's device.

    Args:
        family: Name of the transform, a key of TRANSFORMS.
        dials: Its dials.
        vocabulary: The token embeddings to repair towards.

    Raises:
        UserError: The family is unknown, or a dial is unknown, missing or out of range.
    """
    if family not in TRANSFORMS:
        raise UserError(f"embed_transform={family}: unknown; use one of {', '.join(TRANSFORMS)}")
    check_dials(family, dials, TRANSFORMS[family])
    return TRANSFORMS[family](vocabulary, **dials).eval()
