"""Test which embeddings a frozen language model can use.

Scripts and notebooks import public names from here: `from latentwire import Vocabulary, repair`. Each name is loaded on
its first use.
"""

import importlib
from typing import TYPE_CHECKING

from latentwire.harness import __version__ as __version__

if TYPE_CHECKING:  # the same names, for type checkers
    from latentwire.harness.errors import UserError as UserError
    from latentwire.lm.by_name import load_model_by_name as load_model_by_name
    from latentwire.lm.models import LanguageModel as LanguageModel
    from latentwire.lm.vocabulary import Vocabulary as Vocabulary
    from latentwire.notebook import EvaluationOptions as EvaluationOptions
    from latentwire.notebook import compare_scores as compare_scores
    from latentwire.notebook import evaluate_model as evaluate_model
    from latentwire.notebook import repair as repair
    from latentwire.stats.answers import exact_match as exact_match
    from latentwire.stats.answers import f1_score as f1_score
    from latentwire.transforms.base import Transform as Transform
    from latentwire.transforms.registry import build_transform as build_transform

PUBLIC = {
    "EvaluationOptions": "latentwire.notebook:EvaluationOptions",
    "LanguageModel": "latentwire.lm.models:LanguageModel",
    "Transform": "latentwire.transforms.base:Transform",
    "UserError": "latentwire.harness.errors:UserError",
    "Vocabulary": "latentwire.lm.vocabulary:Vocabulary",
    "build_transform": "latentwire.transforms.registry:build_transform",
    "compare_scores": "latentwire.notebook:compare_scores",
    "evaluate_model": "latentwire.notebook:evaluate_model",
    "exact_match": "latentwire.stats.answers:exact_match",
    "f1_score": "latentwire.stats.answers:f1_score",
    "load_model_by_name": "latentwire.lm.by_name:load_model_by_name",
    "repair": "latentwire.notebook:repair",
}
__all__ = ["__version__", *PUBLIC]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = PUBLIC[name].split(":")
    return getattr(importlib.import_module(module), attribute)
