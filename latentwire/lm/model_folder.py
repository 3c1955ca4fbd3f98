"""Folders of model weights: `weight_files()` lists, `load_whole()` loads and `save_model()` writes them."""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from latentwire.harness.errors import UserError
from latentwire.harness.results import writing


def weight_files(folder: Path, setting: str) -> list[Path]:
    """Return a folder's weight files, which must be safetensors: loading a pickle can run arbitrary code.

    Args:
        folder: Folder of a model.
        setting: Setting that names the folder, with its value, for the error message.

    Raises:
        UserError: The folder has no safetensors; the message names a pickle if there is one.
    """
    if found := sorted(folder.glob("*.safetensors")):
        return found
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    reason = f"has its weights in {pickles[0]}, a pickle, which is not loaded" if pickles else "has no weights"
    raise UserError(
        f"{setting}: {folder} {reason}; give a folder with model.safetensors or its shards"
        + (" (or convert it to safetensors: load a pickle you trust, then call save_pretrained)" if pickles else "")
    )


def load_whole(where: str, **options: Any) -> PreTrainedModel:
    """Load a causal language model, but only if the folder holds all of its weights.

    transformers itself would fill in missing weights at random. It would also drop the head of a reward model, and with
    tied embeddings the rest would pass for a language model.

    Args:
        where: Folder, or name of a hub repository.
        options: Further arguments of `from_pretrained`.

    Raises:
        ValueError: Weights are missing, have another shape, or belong to a reward model.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(where, output_loading_info=True, **options)
    model, info = loaded
    missing = sorted({*info["missing_keys"], *(str(key) for key in info.get("mismatched_keys", ()))})
    if missing:
        raise ValueError(f"{len(missing)} weights are missing or of another shape, among them {missing[0]}")
    if head := next((key for key in sorted(map(str, info["unexpected_keys"])) if key.startswith("score.")), None):
        raise ValueError(f"it is a reward model: its {head} returns scores instead of tokens")
    assert isinstance(model, PreTrainedModel)
    return model


@contextlib.contextmanager
def bars_on_terminals_only() -> Iterator[None]:
    """Silence transformers' warnings, and show its progress bars only on a terminal."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    if sys.stderr.isatty():
        try:
            yield
        finally:
            transformers_logging.set_verbosity(verbosity)
        return
    transformers_logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the GGUF reader's bar cannot be switched off
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, target: Path) -> None:
    """Write a model and its tokenizer in the format of transformers, completely or not at all.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        target: Folder to write, which is replaced.

    Raises:
        ResultWriteError: The folder is not writable, or the disk is full.
    """
    temporary = target.with_name(f".{target.name}.tmp")
    with writing(target):
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            with bars_on_terminals_only():
                model.save_pretrained(temporary)
        except SafetensorError as error:  # safetensors raises this for a full disk too
            raise OSError(str(error)) from error
        tokenizer.save_pretrained(temporary)
        shutil.rmtree(target, ignore_errors=True)
        temporary.replace(target)
