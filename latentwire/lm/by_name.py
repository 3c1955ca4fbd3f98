"""Models of conf/model by name. Main entry: `load_model_by_name()`."""

from __future__ import annotations

import torch
from omegaconf import OmegaConf

from latentwire.harness.paths import config_file
from latentwire.harness.typed_config import typed
from latentwire.lm.models import LanguageModel, load_model
from latentwire.lm.spec import ModelSpec


def load_model_by_name(
    name: str = "smollm2", device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> LanguageModel:
    """Load the model that the setting `model=NAME` selects, frozen, with its tokenizer.

    Args:
        name: Name of a file in conf/model. `smollm2` comes from a pinned wheel; `tiny_random` is built locally.
        device: Device of the weights.
        dtype: Dtype of the weights.

    Returns:
        The model and its tokenizer.

    Raises:
        UserError: The name is unknown, or the model does not load.

    >>> load_model_by_name("tiny_random").model.config.num_hidden_layers
    2
    """
    path = config_file("model", name)
    return load_model(typed(ModelSpec, OmegaConf.load(path).model, "model."), torch.device(device), dtype)
