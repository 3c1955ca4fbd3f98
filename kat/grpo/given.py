"""Models that a run is given: the policy it starts from, the reward model that judges it, and whether they fit it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from transformers import PreTrainedModel

from kat.grpo.rewards import MODEL, load_function
from kat.pipeline.ensure import config_of
from kat.reward.model import load_reward_model
from kat.reward.task import reward as train_reward
from kat.training.model_folder import READ_TOO
from latentwire.harness.assets import file_sha256
from latentwire.harness.checkpoint import OtherConfigurationError
from latentwire.harness.errors import UserError
from latentwire.harness.progress import log
from latentwire.harness.results import config_hash
from latentwire.harness.typed_config import typed
from latentwire.lm.model_folder import weight_files
from latentwire.lm.spec import ModelSpec


def policy_spec(cfg: DictConfig) -> ModelSpec:
    """Return which model training starts from: the folder `policy`, or else `model`.

    Raises:
        UserError: A folder without a model, or one within the folder of this run.
    """
    if cfg.policy is None:
        return typed(ModelSpec, cfg.model, "model.")
    folder = _model_folder(
        "policy", cfg.policy, "give the folder of a finished run, or one of save_pretrained", cfg.out
    )
    return ModelSpec(name=f"policy={cfg.policy}", origin="path", path=str(folder))


def reward_folder(cfg: DictConfig) -> Path:
    """Return the folder of the reward model: the one given, or that of task=reward, which is run if need be.

    Raises:
        UserError: No such folder, one without a model, or one within the folder of this run; or what task=reward
            raises.
    """
    if cfg.reward is not None:
        return _model_folder("reward", cfg.reward, "give the folder of a finished run of task=reward", cfg.out)
    changes = {"sampler": {"name": cfg.reward_sampler}, "tracker": cfg.tracker, "held_out": cfg.held_out}
    wanted = config_of(cfg, "train", "reward", **changes)
    if not (Path(wanted.out) / "result.json").is_file():
        log(f"{wanted.out}: no reward model there yet, so task=reward comes first")
    try:
        train_reward(wanted)
    except OtherConfigurationError as error:
        raise UserError(
            f"{error}\nThis is the reward model that the policy would be trained with: train it anew with train.py "
            "task=reward force=true and the same settings, or name another with reward=FOLDER"
        ) from error
    return Path(wanted.out) / "model"


def _model_folder(setting: str, value: Any, remedy: str, out: str) -> Path:
    given = Path(str(value)).expanduser()
    folder = given / "model" if (given / "model").is_dir() else given
    if not (folder / "config.json").is_file():
        raise UserError(f"{setting}={value}: {'holds no model' if given.is_dir() else 'no such folder'}; {remedy}")
    weight_files(folder, f"{setting}={value}")
    if Path(out).expanduser().resolve() in folder.resolve().parents:
        raise UserError(
            f"{setting}={value}: lies in the folder that this run writes to, out={out}, where it would be moved or "
            "overwritten; give another out=FOLDER"
        )
    return folder


def content_of(folder: Path) -> dict[str, str]:
    """Return what a model's folder is: the digests of its weights by file, and one of settings and tokenizer.

    Raises:
        UserError: It has no weights as safetensors.
    """
    others = sorted((path.name, file_sha256(path)) for pattern in READ_TOO for path in folder.glob(pattern))
    weights = {path.name: file_sha256(path) for path in weight_files(folder, str(folder))}
    return {**weights, "settings": config_hash([list(pair) for pair in others])}


def sources_of(names: Sequence[str]) -> dict[str, str]:
    """Return the digests of the modules that hold the reward functions among the names; helpers beside them count.

    Raises:
        UserError: What cannot be imported, or a function whose module has no source to tell it by.
    """
    found = {}
    for name in names:
        if name == MODEL:
            continue
        load_function(name)
        module = sys.modules[name.partition(":")[0]]
        try:
            found[name] = config_hash(inspect.getsource(module))
        except (OSError, TypeError) as error:
            raise UserError(
                f"grpo.reward_funcs: {name}: {module.__name__} has no source that could be read ({error}), so nothing "
                "would tell when it changes; put the function into a .py file"
            ) from error
    return found


def differing_tokenizers(one: Any, other: Any) -> list[str]:
    """Return in what two tokenizers differ, in words; empty where ids of one mean the same to the other."""
    vocabularies = [tokenizer.get_vocab() for tokenizer in (one, other)]
    found = []
    if vocabularies[0] != vocabularies[1]:
        found.append(f"vocabulary ({len(vocabularies[0])} and {len(vocabularies[1])} tokens)")
    if getattr(one, "chat_template", None) != getattr(other, "chat_template", None):
        found.append("chat template")
    for name in ("eos_token", "pad_token"):
        values = [getattr(tokenizer, name, None) for tokenizer in (one, other)]
        if values[0] != values[1]:
            found.append(f"{name} ({values[0]} and {values[1]})")
    return found


def load_judge(folder: Path, tokenizer: Any, device: torch.device) -> PreTrainedModel:
    """Load a reward model for completions of a policy, whose token ids it reads.

    Raises:
        UserError: It does not load, or its tokenizer is not the policy's; says in what they differ.
    """
    model, own = load_reward_model(folder, device, torch.float32)
    if differing := differing_tokenizers(own, tokenizer):
        raise UserError(
            f"the reward model in {folder} has another tokenizer than the policy, they differ in "
            f"{', '.join(differing)}: it would read other words than were written; give a reward model of the same "
            "family"
        )
    return model
