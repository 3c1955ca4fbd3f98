"""The repairs by name: embeddings that a frozen LM cannot read -> embeddings that it can.

Each is an nn.Module with (T, D) -> (T, D) or (B, T, D) -> (B, T, D), any float dtype in and the same out, and
gradients wherever the mathematics has any. Rows of a batch never influence one another (random draws differ from
row to row). "Nearest" is by cosine.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from latentwire.harness.errors import UserError
from latentwire.lm.vocabulary import Vocabulary
from latentwire.transforms.auto import Auto
from latentwire.transforms.base import EMBEDDINGS, PAIRS, Transform, check_dials
from latentwire.transforms.codebook import SoftCodebook
from latentwire.transforms.fitted import MomentMatching, Procrustes, ProcrustesSupervised, Whitening
from latentwire.transforms.scaling import Baseline, BatchDistribution, RMSMatching
from latentwire.transforms.tokens import AnchorOffset, NearestK, RandomInterpolation, SoftVocab


class Chain(Transform):
    """Other transforms one after the other, each fitted, if at all, on what those before it make of the source.

    `steps` are the names of configurations, joined by +: rms_scale1.0+anchor_eps0.05.
    """

    def __init__(self, vocabulary: Vocabulary, *, steps: str) -> None:
        super().__init__(vocabulary)
        self.names = steps.split("+")
        self.parts = [build_transform(*read_label(name), vocabulary) for name in self.names]
        self.modules_of_parts = nn.ModuleList(self.parts)  # so that .to() reaches them
        wanted = {step.fits for step in self.parts}
        self.fits = PAIRS if PAIRS in wanted else EMBEDDINGS if EMBEDDINGS in wanted else ""

    def fit(self, x: Tensor, truth: Tensor | None, generator: torch.Generator) -> None:
        """Fit the steps in their order."""
        for name, step in zip(self.names, self.parts, strict=True):
            if step.fits:
                step.fit(x, truth if step.fits == PAIRS else None, generator)
                self.diagnosis[name] = step.diagnosis
            x = step(x, generator)

    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """last(... second(first(x)))."""
        for step in self.parts:
            x = step(x, generator)
        return x


LABELS = {  # how a configuration is called, as conf/embed_transform has it
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
WHOLE = {"k", "codebook_size"}  # dials that are whole numbers


def read_label(label: str) -> tuple[str, dict[str, Any]]:
    """Return the family and the dials of a configuration's name: anchor_eps0.05 -> anchor_offset, eps 0.05.

    Raises:
        UserError: No configuration is called so.
    """
    for family, pattern in LABELS.items():
        found = re.fullmatch(re.sub(r"{(\w+)}", r"(?P<\1>[-+.\\de]+)", pattern), label)
        if found is None:
            continue
        try:
            dials = {dial: (int if dial in WHOLE else float)(value) for dial, value in found.groupdict().items()}
        except ValueError:
            continue
        if (written := pattern.format(**dials)) != label:
            raise UserError(f"steps=...{label}...: write it as it is called, {written}")
        return family, dials
    examples = "rms_scale1.0+anchor_eps0.05"
    raise UserError(
        f"steps=...{label}...: no configuration is called so; join names as task=list sweep=embed_plus prints them, "
        f"such as {examples}"
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

    Raises:
        UserError: An unknown family, a dial it does not have or lacks, or a dial out of range.
    """
    if family not in TRANSFORMS:
        raise UserError(f"embed_transform={family}: unknown; use one of {', '.join(TRANSFORMS)}")
    check_dials(family, dials, TRANSFORMS[family])
    return TRANSFORMS[family](vocabulary, **dials).eval()
