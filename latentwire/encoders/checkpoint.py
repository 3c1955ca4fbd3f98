"""Folders of trained encoders. Main entries: `save_latents()`, `load_latents()` and `about_latents()`."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from latentwire.encoders.pipeline import Latents, LatentSpec
from latentwire.harness.errors import UserError
from latentwire.harness.results import open_atomically, read_json, write_json, writing
from latentwire.lm.vocabulary import Vocabulary

FORMAT = 1


def save_latents(latents: Latents, folder: Path, about: dict[str, Any]) -> None:
    """Write config.json, then model.safetensors, so that a folder with weights is complete.

    Args:
        latents: The encoder, adapter and transform.
        folder: Folder to write to.
        about: Further entries of config.json, which `about_latents` returns.

    Raises:
        ResultWriteError: The folder is not writable, or the disk is full.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in latents.state_dict().items()}
    content = save(weights)
    digest = hashlib.sha256(content).hexdigest()
    write_json(folder / "config.json", {"format": FORMAT, "sha256": digest, **vars(latents.spec), **about})
    path = folder / "model.safetensors"
    with open_atomically(path) as file, writing(path):
        file.write(content)


def find_latents(checkpoint: str) -> Path:
    """Return the folder of a trained encoder: `checkpoint` itself, or the folder `encoder` in it.

    Args:
        checkpoint: Folder of the encoder, or of the run that trained it.

    Raises:
        UserError: `checkpoint` is empty, or holds no trained encoder.
    """
    if not checkpoint:
        raise UserError(
            "embed_source=latent: which encoder? Add checkpoint=FOLDER, the folder of a train.py task=latent"
        )
    folder = Path(str(checkpoint)).expanduser()  # a folder named 12 is a number to YAML
    for candidate in (folder, folder / "encoder"):
        if (candidate / "model.safetensors").is_file() and (candidate / "config.json").is_file():
            return candidate
    reason = "holds no trained encoder (encoder/model.safetensors)" if folder.is_dir() else "no such folder"
    raise UserError(f"checkpoint={checkpoint}: {reason}; give the folder of a finished train.py task=latent")


def about_latents(checkpoint: str, lm: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a trained encoder's config.json.

    Args:
        checkpoint: Folder of the encoder or of the run that trained it.
        lm: Identity of the LM that will get the latents, to check it; None for no check.

    Raises:
        UserError: The encoder does not exist, is damaged, or was trained for another LM.
    """
    folder = find_latents(checkpoint)
    about = read_json(folder / "config.json")
    needed = {"format", "sha256", "trained_on", *LatentSpec.__dataclass_fields__}
    if not isinstance(about, dict) or not needed <= about.keys() or about["format"] != FORMAT:
        raise UserError(f"{folder / 'config.json'}: does not describe an encoder of format {FORMAT}; train it again")
    # Through JSON, because the file has lists for tuples.
    if lm is not None and about["lm"] != json.loads(json.dumps(lm)):
        raise UserError(
            f"checkpoint={checkpoint}: was trained for the model {about['lm_name']}, not for this one; "
            "choose that model with model=..., or train an encoder for this one"
        )
    return about


@lru_cache(maxsize=2)
def _content(path: Path, digest: str) -> bytes:
    """Return the content of a file whose SHA-256 must be `digest`."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise UserError(f"{path}: does not match the checksum in its config.json; restore it, or train it again")
    return content


def load_latents(checkpoint: str, vocabulary: Vocabulary) -> Latents:
    """Load a trained encoder, frozen and in evaluation mode, on the vocabulary's device.

    Args:
        checkpoint: Folder of the encoder, or of the run that trained it.
        vocabulary: The token embeddings of the LM.

    Raises:
        UserError: The encoder does not exist, is damaged, or fits an LM of another width.
    """
    about = about_latents(checkpoint)
    spec = LatentSpec(**{name: about[name] for name in LatentSpec.__dataclass_fields__})
    folder = find_latents(checkpoint)
    content = _content(folder / "model.safetensors", about["sha256"])
    try:
        weights = load(content)
        with torch.random.fork_rng(devices=[]):
            latents = Latents(spec, vocabulary)
        latents.load_state_dict(weights)
    except (SafetensorError, RuntimeError, KeyError, TypeError, UserError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{folder}: does not load as the encoder that its config.json describes ({reason}); train it again"
        ) from error
    return latents.requires_grad_(False).eval().to(vocabulary.embeddings.device)
