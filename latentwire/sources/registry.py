"""The sources by name: real token embeddings, known distortions, latents and controls. Main entry: `build_source()`.

A source distorts the span of passage and question, (T, D) -> (T, D). Draws that all examples share, such as a rotation,
happen when the source is built. Draws of one example come from the generator passed with it. A source with
`passage_only` replaces only the passage, by any number of positions, (T, D) -> (L, D). The question then stays real
tokens.
"""

from __future__ import annotations

from typing import Any

import torch

from latentwire.harness.errors import UserError
from latentwire.harness.registry import check_dials
from latentwire.lm.vocabulary import Vocabulary
from latentwire.sources.base import Source
from latentwire.sources.controls import Averaged, Cut, Empty
from latentwire.sources.distortions import Anisotropic, LowRank, Mixed, Noisy, Rotated, Scaled, Shifted, TokenScale
from latentwire.sources.latent import Latent

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

    Args:
        name: Name of the source, a key of SOURCES.
        dials: Its dials.
        vocabulary: The token embeddings of the LM.
        generator: CPU generator of the draws that all examples share.

    Raises:
        UserError: The name is unknown, or a dial is unknown, missing or out of range.
    """
    if name not in SOURCES:
        raise UserError(f"embed_source={name}: unknown; use one of {', '.join(SOURCES)}")
    check_dials(name, dials, SOURCES[name])
    return SOURCES[name](vocabulary, generator, **dials)
