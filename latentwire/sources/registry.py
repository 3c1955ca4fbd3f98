"""What stands in for an encoder: real token embeddings, a known distortion of them, or a trained encoder's latents.

A source distorts the source span alone, passage and question, (T, D) -> (T, D). What all examples share (a rotation, an
offset) is drawn when the source is built; what differs between them is drawn from the generator passed with each
example. A source with `passage_only` puts as many positions as it likes in the place of the passage, (T, D) -> (L, D);
there the question stays real tokens.
"""

from __future__ import annotations

from typing import Any

import torch

from latentwire.harness.errors import UserError
from latentwire.lm.vocabulary import Vocabulary
from latentwire.sources.base import Source
from latentwire.sources.controls import Averaged, Cut, Empty
from latentwire.sources.distortions import Anisotropic, LowRank, Mixed, Noisy, Rotated, Scaled, Shifted, TokenScale
from latentwire.sources.latent import Latent
from latentwire.transforms.base import check_dials

SOURCES: dict[str, type[Source]] = {
    "text": Source,
    "scaled": Scaled,
    "noisy": Noisy,
    "shifted": Shifted,
    "rotated": Rotated,
    "mixed": Mixed,
    "token_scale": TokenScale,
    "anisotropic": Anisotropic,
    "low_rank": LowRank,
    "latent": Latent,
    "cut": Cut,
    "averaged": Averaged,
    "empty": Empty,
}


def build_source(name: str, dials: dict[str, Any], vocabulary: Vocabulary, generator: torch.Generator) -> Source:
    """Build a source.

    Raises:
        UserError: An unknown name, a dial it does not have or lacks, or a dial out of range.
    """
    if name not in SOURCES:
        raise UserError(f"embed_source={name}: unknown; use one of {', '.join(SOURCES)}")
    check_dials(name, dials, SOURCES[name])
    return SOURCES[name](vocabulary, generator, **dials)
