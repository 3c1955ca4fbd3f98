"""Sample training prompts by density, so that a language model trains on rare prompts more often.

Scripts and notebooks import public names from here: `from kat import DensityAwareSampler, attach`. Each name is loaded
on its first use. The rooms in order: data, embedding, density, sampling, pipeline (their tasks); then training, reward,
grpo, diversity.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the same names, for type checkers
    from kat.data.by_name import load_pairs_by_name as load_pairs_by_name
    from kat.data.prompts import unique_prompts as unique_prompts
    from kat.density.diagnostics import diagnose_weights as diagnose_weights
    from kat.density.estimate import DensitySpec as DensitySpec
    from kat.density.estimate import estimate as estimate
    from kat.density.projection import project as project
    from kat.diversity.bleu import self_bleu as self_bleu
    from kat.embedding.pooling import embed_hidden as embed_hidden
    from kat.notebook import compare_completions as compare_completions
    from kat.notebook import weigh_prompts as weigh_prompts
    from kat.sampling.sampler import DensityAwareSampler as DensityAwareSampler
    from kat.sampling.trl import attach as attach

PUBLIC = {
    "DensityAwareSampler": "kat.sampling.sampler:DensityAwareSampler",
    "DensitySpec": "kat.density.estimate:DensitySpec",
    "attach": "kat.sampling.trl:attach",
    "compare_completions": "kat.notebook:compare_completions",
    "diagnose_weights": "kat.density.diagnostics:diagnose_weights",
    "embed_hidden": "kat.embedding.pooling:embed_hidden",
    "estimate": "kat.density.estimate:estimate",
    "load_pairs_by_name": "kat.data.by_name:load_pairs_by_name",
    "project": "kat.density.projection:project",
    "self_bleu": "kat.diversity.bleu:self_bleu",
    "unique_prompts": "kat.data.prompts:unique_prompts",
    "weigh_prompts": "kat.notebook:weigh_prompts",
}
__all__ = list(PUBLIC)


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = PUBLIC[name].split(":")
    return getattr(importlib.import_module(module), attribute)
