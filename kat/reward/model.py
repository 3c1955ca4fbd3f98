"""The reward model: a backbone with a scalar head on the last token of a completion, and the Bradley-Terry loss.

Main entries: `reward_model_of()` makes a new model, `load_reward_model()` loads a trained one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from kat.training.model_folder import require_model
from latentwire.harness.errors import UserError
from latentwire.lm.model_folder import bars_on_terminals_only
from latentwire.lm.models import LanguageModel

TRAINED_BY = "a finished run of train.py task=reward"  # source of reward models, in error messages


def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return -log sigmoid(chosen - rejected), pair by pair: (B,), (B,) -> (B,), in nats.

    The negative log-likelihood of the preference (Bradley and Terry 1952; Ouyang et al. 2022, arXiv 2203.02155).
    """
    return -functional.logsigmoid(chosen - rejected)


def choose_pad(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> int:
    """Return an id for padding that differs from the end token, a special token if possible.

    transformers takes the score at the last token that is not the pad token. Every completion ends with the end token,
    so padding with it would move the score one token to the left. The pad token may occur inside a text.

    Args:
        tokenizer: The model's tokenizer.
        vocabulary: Number of tokens in the vocabulary.
    """
    end = tokenizer.eos_token_id
    candidates = [tokenizer.pad_token_id, *reversed(tokenizer.all_special_ids), *range(vocabulary)]
    return next(int(token) for token in candidates if token is not None and token != end)


def reward_model_of(lm: LanguageModel, generator: torch.Generator) -> PreTrainedModel:
    """Return a reward model with the backbone of a causal language model, sharing its weights.

    The head is drawn from N(0, 1 / (D + 1)), as in Stiennon et al. (2020, arXiv 2009.01325). It has no bias, because a
    bias cancels in every comparison.

    Args:
        lm: The language model.
        generator: Random numbers of the head.

    Raises:
        UserError: transformers has no sequence classification for this architecture.
    """
    config = lm.model.config
    text = config.get_text_config()
    config.num_labels = 1
    text.pad_token_id = config.pad_token_id = choose_pad(lm.tokenizer, text.vocab_size)
    try:
        with torch.device("meta"):
            made: Any = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise UserError(
            f"{type(lm.model).__name__}: transformers has no sequence classification for this architecture, so it "
            "cannot become a reward model; choose another model"
        ) from error
    setattr(made, made.base_model_prefix, lm.model.base_model)
    head = torch.randn(1, text.hidden_size, generator=generator) / (text.hidden_size + 1) ** 0.5
    made.score = nn.Linear(text.hidden_size, 1, bias=False, device=lm.device, dtype=lm.dtype)
    made.score.weight.data.copy_(head)
    made.config = config
    reward_model: PreTrainedModel = made.eval()
    return reward_model


def load_reward_model(
    path: Path | str, device: torch.device, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a trained reward model and its tokenizer, frozen.

    Args:
        path: Folder of a run of task=reward, or of save_pretrained for a sequence classification with one label.
        device: Device of the model.
        dtype: Data type of the weights.

    Returns:
        The model in evaluation mode and its tokenizer.

    Raises:
        UserError: The folder does not exist, is incomplete, or holds another kind of model.
    """
    folder = require_model("reward", path, TRAINED_BY)
    remedy = f"give the folder of {TRAINED_BY}"
    try:
        with bars_on_terminals_only():
            tokenizer = AutoTokenizer.from_pretrained(folder)
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=dtype, attn_implementation="sdpa", use_safetensors=True, output_loading_info=True
            )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"reward={path}: does not load as a reward model ({reason}); {remedy}") from error
    model, info = loaded
    if info["missing_keys"]:
        raise UserError(
            f"reward={path}: not a reward model, {sorted(info['missing_keys'])[0]} and "
            f"{len(info['missing_keys']) - 1} other weights are missing; {remedy}"
        )
    if model.config.num_labels != 1:
        raise UserError(f"reward={path}: a classifier with {model.config.num_labels} labels, a reward model has one; "
                        f"{remedy}")  # fmt: skip
    model.requires_grad_(False).eval().to(device)
    return model, tokenizer
