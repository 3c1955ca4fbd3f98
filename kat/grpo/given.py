"""Models that a run of task=grpo starts with: the policy and the reward model, and checks that they fit together.

Main entries: `policy_spec()`, `reward_folder()` and `load_judge()`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from omegaconf import DictConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kat.data.prompts import read_prompts
from kat.grpo.reward_calls import RewardCall
from kat.pipeline.ensure import config_of
from kat.reward.model import TRAINED_BY, load_reward_model
from kat.reward.task import reward as train_reward
from kat.sampling.arms import ARMS
from kat.training.model_folder import require_model, settings_digest
from latentwire.harness.assets import file_sha256
from latentwire.harness.checkpoint import OtherConfigurationError
from latentwire.harness.errors import UserError
from latentwire.harness.progress import log
from latentwire.harness.registry import module_digest
from latentwire.harness.typed_config import typed
from latentwire.lm.model_folder import weight_files
from latentwire.lm.spec import ModelSpec


def policy_spec(cfg: DictConfig) -> ModelSpec:
    """Return the model that training starts from: the folder `policy` if it is set, else `model`.

    Raises:
        UserError: The folder has no model, or is inside the folder of this run.
    """
    if cfg.policy is None:
        return typed(ModelSpec, cfg.model, "model.")
    folder = _model_folder("policy", cfg.policy, "a finished run or of save_pretrained", cfg.out)
    return ModelSpec(name=f"policy={cfg.policy}", origin="path", path=str(folder))


def reward_folder(cfg: DictConfig) -> Path:
    """Return the folder of the reward model: `reward` if it is set, else the output of task=reward, run if necessary.

    Raises:
        UserError: The folder does not exist, has no model, or is inside the folder of this run; or task=reward fails.
    """
    if cfg.reward is not None:
        return _model_folder("reward", cfg.reward, TRAINED_BY, cfg.out)
    if cfg.reward_sampler not in ARMS:
        raise UserError(f"reward_sampler={cfg.reward_sampler}: unknown; use one of {', '.join(ARMS)}")
    changes = {"tracker": cfg.tracker, "held_out": cfg.held_out, "force_weights": cfg.force_weights}
    reward_cfg = config_of(cfg, "train", "reward", f"sampler={cfg.reward_sampler}", **changes)
    if not (Path(reward_cfg.out) / "result.json").is_file():
        log(f"{reward_cfg.out}: no reward model there yet, so task=reward comes first")
    try:
        train_reward(reward_cfg)
    except OtherConfigurationError as error:
        raise UserError(
            f"{error}\nThe policy would be trained with this reward model: train it again by train.py task=reward "
            "force=true with the same settings, or name another one with reward=FOLDER"
        ) from error
    return Path(reward_cfg.out) / "model"


def _model_folder(setting: str, value: str | Path, source: str, out: str) -> Path:
    """Return the folder of a model that is outside the folder `out`, which this run writes."""
    folder = require_model(setting, value, source)
    if Path(out).expanduser().resolve() in folder.resolve().parents:
        raise UserError(
            f"{setting}={value}: is inside the folder that this run writes to, out={out}, and would be moved or "
            "overwritten; give another out=FOLDER"
        )
    return folder


def content_of(folder: Path) -> dict[str, str]:
    """Return digests: of each weight file under its name, and of settings and tokenizer under "settings".

    Raises:
        UserError: The folder has no weights as safetensors.
    """
    weights = {path.name: file_sha256(path) for path in weight_files(folder, str(folder))}
    return {**weights, "settings": settings_digest(folder)}


def sources_of(calls: Mapping[str, RewardCall]) -> dict[str, str]:
    """Return the digest of the module of each reward function that is not of this project, by the function's name.

    A function that a setting of a reward names has the name of both: novelty.partition. Any change of the module, or of
    the user's modules that it imports, changes the digest.

    Raises:
        UserError: The source of a module cannot be read.
    """
    found = {}
    named = {name: (name, call.reward.define.__module__) for name, call in calls.items()}
    for reward, call in calls.items():
        named |= {f"{reward}.{setting}": (path, "") for setting, path in call.functions.items()}
    for name, (path, defined_in) in named.items():
        module, _, function = path.rpartition(":")
        try:
            digest = module_digest(module or defined_in, function)
        except UserError as error:
            raise UserError(f"grpo.reward_funcs: {name}: {error}") from error
        if digest is not None:
            found[name] = digest
    return found


def require_reward_columns(calls: Mapping[str, RewardCall], path: Path, *, has_model: bool) -> None:
    """Check that a prompts file has the columns that the reward functions need.

    Args:
        calls: The reward functions.
        path: The prompts file.
        has_model: Whether a reward model scores every completion as well.

    Raises:
        UserError: The file cannot be read, lacks a column, or has a prompt whose completions no reward scores.
    """
    prompts = read_prompts(path)
    without = [call.require_columns(prompts) for call in calls.values()]
    if not has_model and without and (unscored := set.intersection(*without)):
        raise UserError(
            f"grpo.reward_funcs=[{','.join(calls)}]: none of them scores {len(unscored)} of {len(prompts)} prompts in "
            f"{path}, {min(unscored)} for instance, which have no reference answer; remove these prompts, or add a "
            "reward that needs none"
        )


def differing_tokenizers(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> list[str]:
    """Return the differences of two tokenizers in words; an empty list if both give ids the same meaning."""
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


def load_judge(folder: Path, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> PreTrainedModel:
    """Load a reward model that scores the token ids of a policy.

    Args:
        folder: Folder of the reward model.
        tokenizer: The policy's tokenizer.
        device: Device of the model.

    Raises:
        UserError: The model does not load, or the tokenizers differ; the message lists the differences.
    """
    model, own = load_reward_model(folder, device, torch.float32)
    if differing := differing_tokenizers(own, tokenizer):
        raise UserError(
            f"the reward model in {folder} has another tokenizer than the policy, they differ in "
            f"{', '.join(differing)}: it would score other words than the policy wrote; give a reward model of "
            "the same family"
        )
    return model
