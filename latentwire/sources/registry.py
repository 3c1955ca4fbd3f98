"""The sources by name: real token embeddings, known distortions, latents and controls. Main entry: `build_source()`.

A source distorts the span of passage and question, (T, D) -> (T, D). Draws that all examples share, such as a rotation,
happen when the source is built. Draws of one example come from the generator passed with it. A source with
`passage_only` replaces only the passage, by any number of positions, (T, D) -> (L, D). The question then stays real
tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from latentwire.analysis.ladder import Ladder
from latentwire.harness.registry import check_dials
from latentwire.lm.vocabulary import Vocabulary
from latentwire.sources import controls, distortions, latent  # noqa: F401 (they register sources)
from latentwire.sources.base import SOURCES, Source

__all__ = ["SOURCES", "build_source", "ladders"]


def build_source(name: str, dials: Mapping[str, object], vocabulary: Vocabulary, generator: torch.Generator) -> Source:
    """Build a source.

    Args:
        name: Name of the source.
        dials: Its dials.
        vocabulary: The token embeddings of the LM.
        generator: CPU generator of the draws that all examples share.

    Raises:
        UserError: The name is unknown, or a dial is unknown, missing or out of range.
    """
    source = SOURCES[name]
    check_dials(name, dials, source)
    return source(vocabulary, generator, **dials)


def ladders() -> list[Ladder]:
    """Return the ladders of all sources."""
    return [ladder for _, source in SOURCES.items() for ladder in source.ladders]
