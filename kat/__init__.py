"""Sample training prompts by density, so that a language model trains on rare prompts more often.

In a script, begin with `from kat import DensityAwareSampler, attach`. Each name is imported when it is first used.
The rooms in order: data, embedding, density, sampling, pipeline (their tasks); then training, reward, grpo, diversity.
"""

import importlib
from typing import Any

_PUBLIC = {
    "Density": "kat.density.estimate:Density",
    "DensityAwareSampler": "kat.sampling.sampler:DensityAwareSampler",
    "DensitySpec": "kat.density.estimate:DensitySpec",
    "attach": "kat.sampling.trl:attach",
    "diagnose_weights": "kat.density.diagnostics:diagnose_weights",
    "embed_hidden": "kat.embedding.pooling:embed_hidden",
    "estimate": "kat.density.estimate:estimate",
    "load_pairs_by_name": "kat.data.by_name:load_pairs_by_name",
    "project": "kat.density.projection:project",
    "self_bleu": "kat.diversity.bleu:self_bleu",
    "unique_prompts": "kat.data.prompts:unique_prompts",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PUBLIC[name].split(":")
    return getattr(importlib.import_module(module), attribute)
