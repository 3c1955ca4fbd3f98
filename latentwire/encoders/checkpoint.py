"""Folders of trained encoders. Main entries: `save_latents()`, `load_latents()` and `about_latents()`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NotRequired, TypedDict, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from latentwire.encoders.pipeline import Latents, LatentSpec
from latentwire.encoders.registry import ENCODERS
from latentwire.harness.errors import UserError
from latentwire.harness.results import JsonObject, open_atomically, read_json, write_json, writing
from latentwire.lm.vocabulary import Vocabulary
from latentwire.records import required_fields
from latentwire.transforms.registry import TRANSFORMS

FORMAT = 1


class EncoderRecord(TypedDict):
    """config.json of a trained encoder: the fields of `LatentSpec`, and how it was trained."""

    format: int
    sha256: str  # of model.safetensors
    encoder: str
    encoder_dials: JsonObject
    adapter_hidden: int
    transform: str
    transform_dials: JsonObject
    lm: JsonObject  # identity of the LM that gets the latents
    lm_name: str
    lm_config: JsonObject
    adapter_scale: NotRequired[str]  # "norm" where it is missing
    compressed_shots: NotRequired[bool]  # whether the shots' passages were latents, too; false where it is missing
    trained_on: list[str]  # fingerprints of the passages that trained or stopped it
    name: NotRequired[str]  # of the run that trained it
    identity: NotRequired[JsonObject]  # of that run


def save_latents(latents: Latents, folder: Path, about: Mapping[str, object]) -> None:
    """Write config.json, then model.safetensors, so that a folder with weights is complete.

    Args:
        latents: The encoder, adapter and transform.
        folder: Folder to write to.
        about: Further entries of config.json: `trained_on`, `name`, `identity` and `compressed_shots`.

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


def find_latents(checkpoint: object, setting: str = "checkpoint") -> Path:
    """Return the folder of a trained encoder: `checkpoint` itself, or the folder `encoder` in it.

    Args:
        checkpoint: Folder of the encoder, or of the run that trained it, as a config gives it.
        setting: Setting that names the folder, for messages.

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
    raise UserError(f"{setting}={checkpoint}: {reason}; give the folder of a finished train.py task=latent")


def about_latents(checkpoint: object, lm: JsonObject | None = None, setting: str = "checkpoint") -> EncoderRecord:
    """Return a trained encoder's config.json.

    Args:
        checkpoint: Folder of the encoder or of the run that trained it.
        lm: Identity of the LM that will get the latents, to check it; None for no check.
        setting: Setting that names the folder, for messages.

    Raises:
        UserError: The encoder does not exist, is damaged, or was trained for another LM. Also: the plugin that defines
            it is not loaded.
    """
    folder = find_latents(checkpoint, setting)
    about = read_json(folder / "config.json")
    needed = required_fields(EncoderRecord)
    if not isinstance(about, dict) or not needed <= about.keys() or about["format"] != FORMAT:
        raise UserError(f"{folder / 'config.json'}: does not describe an encoder of format {FORMAT}; train it again")
    # Through JSON, because the file has lists for tuples.
    if lm is not None and about["lm"] != json.loads(json.dumps(lm)):
        raise UserError(
            f"{setting}={checkpoint}: was trained for the model {about['lm_name']}, not for this one; "
            "choose that model with model=..., or train an encoder for this one"
        )
    known = {
        f"encoder={about['encoder']}": about["encoder"] in ENCODERS,
        f"embed_transform={about['transform']}": about["transform"] in TRANSFORMS,
    }
    for choice in [choice for choice, is_known in known.items() if not is_known]:
        raise UserError(
            f"{setting}={checkpoint}: was trained with {choice}, which is unknown; name its module in plugins=[...]"
        )
    return cast(EncoderRecord, about)


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
    about, folder = about_latents(checkpoint), find_latents(checkpoint)
    spec = LatentSpec(
        about["encoder"], about["encoder_dials"], about["adapter_hidden"], about["transform"],
        about["transform_dials"], about["lm"], about["lm_name"], about["lm_config"],
        about.get("adapter_scale", "norm"),
    )  # fmt: skip
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
