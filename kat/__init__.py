"""Which prompts should a language model train on? Rare ones more often.

For use in a script: `from kat import DensityAwareSampler, attach`. Nothing is imported before it is used.
"""

import importlib
from typing import Any

_PUBLIC = {
    "Density": "kat.density:Density",
    "DensityAwareSampler": "kat.sampler:DensityAwareSampler",
    "DensitySpec": "kat.density:DensitySpec",
    "attach": "kat.trl:attach",
    "diagnose": "kat.diagnostics:diagnose",
    "embed_hidden": "kat.embed:embed_hidden",
    "estimate": "kat.density:estimate",
    "load_pairs_by_name": "kat.by_name:load_pairs_by_name",
    "project": "kat.projection:project",
    "self_bleu": "kat.bleu:self_bleu",
    "unique_prompts": "kat.prompts:unique_prompts",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PUBLIC[name].split(":")
    return getattr(importlib.import_module(module), attribute)
