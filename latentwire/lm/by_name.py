"""A model of conf/model, loaded by its name. Main entry: `load_model_by_name()`."""

from __future__ import annotations

import torch
from omegaconf import OmegaConf

from latentwire.harness.errors import UserError
from latentwire.harness.paths import CONF
from latentwire.harness.typed_config import typed
from latentwire.lm.models import LanguageModel, load_model
from latentwire.lm.spec import ModelSpec


def load_model_by_name(
    name: str = "smollm2", device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> LanguageModel:
    """Load a model and its tokenizer, frozen, as the setting `model=NAME` chooses it.

    Args:
        name: A file of conf/model. `smollm2` comes out of a pinned wheel, `tiny_random` is made on the spot.
        device: Device of the weights.
        dtype: Dtype of the weights.

    Raises:
        UserError: No such name, or the model cannot be loaded.
    """
    path = CONF / "model" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise UserError(f"model={name}: unknown; use one of {known}")
    return load_model(typed(ModelSpec, OmegaConf.load(path).model, "model."), torch.device(device), dtype)
