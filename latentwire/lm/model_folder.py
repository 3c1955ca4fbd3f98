"""A model's folder: its weight files, loaded whole, saved."""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from latentwire.harness.errors import UserError
from latentwire.harness.results import writing


def weight_files(folder: Path, setting: str) -> list[Path]:
    """Return the files of a folder's weights, which must be safetensors: a pickle could run whatever it likes.

    Args:
        folder: Of a model.
        setting: That names it, with its value, for the message.

    Raises:
        UserError: There are none; says so where there are pickles instead.
    """
    if found := sorted(folder.glob("*.safetensors")):
        return found
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    held = f"has its weights as {pickles[0]}, a pickle, which is not loaded" if pickles else "has no weights"
    raise UserError(
        f"{setting}: {folder} {held}; give a folder with model.safetensors or its shards"
        + (" (convert it to safetensors: load it where you trust it, save_pretrained writes them)" if pickles else "")
    )


def load_whole(where: str, **options: Any) -> PreTrainedModel:
    """Load a model, refusing one whose weights are not all there, or are a reward model's.

    transformers would make up the missing ones, and drop the head of a reward model: with tied embeddings what is left
    loads as a language model, and is none.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(where, output_loading_info=True, **options)
    model, info = loaded
    missing = sorted({*info["missing_keys"], *(str(key) for key in info.get("mismatched_keys", ()))})
    if missing:
        raise ValueError(f"{len(missing)} weights are missing or of another shape, among them {missing[0]}")
    if head := next((key for key in sorted(map(str, info["unexpected_keys"])) if key.startswith("score.")), None):
        raise ValueError(f"it is a reward model, its {head} gives scores and no words")
    assert isinstance(model, PreTrainedModel)
    return model


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def bars_on_terminals_only() -> Iterator[None]:
    """Keep transformers' advice off the screen, and its bars out of logs."""
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
        with contextlib.redirect_stderr(io.StringIO()):  # the GGUF reader's bar knows no switch
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()


def save_model(model: Any, tokenizer: Any, target: Path) -> None:
    """Write a model and its tokenizer as transformers loads them: whole, or not at all.

    Raises:
        ResultWriteError: The folder is not writable, or the disk is full.
    """
    temporary = target.with_name(f".{target.name}.tmp")
    with writing(target):
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            with bars_on_terminals_only():
                model.save_pretrained(temporary)
        except SafetensorError as error:  # its own writer's, for a full disk too
            raise OSError(str(error)) from error
        tokenizer.save_pretrained(temporary)
        shutil.rmtree(target, ignore_errors=True)
        temporary.replace(target)
