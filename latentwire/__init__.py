"""Test which embeddings a frozen language model can use.

Scripts import public names from here: `from latentwire import Vocabulary`. Each name is loaded on first use.
"""

import importlib
from typing import Any

from latentwire.harness import __version__ as __version__

_PUBLIC = {
    "LanguageModel": "latentwire.lm.models:LanguageModel",
    "TRANSFORMS": "latentwire.transforms.registry:TRANSFORMS",
    "Transform": "latentwire.transforms.base:Transform",
    "UserError": "latentwire.harness.errors:UserError",
    "Vocabulary": "latentwire.lm.vocabulary:Vocabulary",
    "build_source": "latentwire.sources.registry:build_source",
    "build_transform": "latentwire.transforms.registry:build_transform",
    "exact_match": "latentwire.evaluation.metrics:exact_match",
    "f1_score": "latentwire.evaluation.metrics:f1_score",
    "load_model_by_name": "latentwire.lm.by_name:load_model_by_name",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PUBLIC[name].split(":")
    return getattr(importlib.import_module(module), attribute)
