"""The whole way from a passage to what the LM reads, encoder, adapter and transform, and its folder on disk."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from latentwire.encoders.registry import Adapter, Passages, build_encoder
from latentwire.harness.errors import UserError
from latentwire.harness.results import open_atomically, read_json, write_json, writing
from latentwire.lm.vocabulary import Vocabulary, rms
from latentwire.transforms.base import Transform
from latentwire.transforms.registry import Chain, build_transform
from latentwire.transforms.tokens import AnchorOffset, RandomInterpolation

FORMAT = 1


@dataclass
class LatentSpec:
    """What a latent encoder is: everything that is needed to build it again."""

    encoder: str
    encoder_dials: dict[str, Any]
    adapter_hidden: int
    transform: str
    transform_dials: dict[str, Any]
    lm: dict[str, Any]  # identity of the LM that it speaks to
    lm_name: str
    lm_config: dict[str, Any] = field(default_factory=dict)  # what LMLayers is built after


class Latents(nn.Module):
    """Passages -> what the LM reads in their place, (L_i, D) each.

    Args:
        spec: What to build.
        vocabulary: Of the LM.

    Raises:
        UserError: A dial out of range, or a transform that nothing can be trained through.
    """

    def __init__(self, spec: LatentSpec, vocabulary: Vocabulary) -> None:
        super().__init__()
        unit = float(vocabulary.mean_rms)
        self.spec, self.unit = spec, unit
        self.encoder = build_encoder(spec.encoder, spec.encoder_dials, vocabulary.width, unit, spec.lm_config)
        self.adapter = Adapter(self.encoder.z_width, vocabulary.width, spec.adapter_hidden)
        self.transform = build_transform(spec.transform, spec.transform_dials, vocabulary)
        steps = self.transform.parts if isinstance(self.transform, Chain) else [self.transform]
        if any(isinstance(step, RandomInterpolation) for step in steps):
            raise UserError(
                f"embed_transform={spec.transform}: its result does not hang on the encoder, so nothing can be trained "
                "through it; choose another transform"
            )
        if self.transform.fits:
            raise UserError(
                f"embed_transform={spec.transform}: is fitted to a finished source, this one is in training; "
                "choose another transform, or fit it to the trained encoder with run.py embed_source=latent"
            )
        # Its result is chosen, not computed: the mathematical gradient is nearly nothing.
        self.chooses = any(isinstance(step, AnchorOffset) for step in steps)

    def forward(self, passages: Passages, generator: torch.Generator | None = None) -> list[Tensor]:
        """Encode passages.

        Args:
            passages: A batch.
            generator: Of the transform's noise in training; None in evaluation.

        Returns:
            (L_i, D) each, float32. The transform sees each passage by itself.
        """
        adapted = self.adapter(self.encoder(passages))  # (B, L, D)
        counts = [self.encoder.positions(tokens) for tokens in passages.lengths]
        return [self.repair(rows[:n], generator) for rows, n in zip(adapted, counts, strict=True)]

    def repair(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Put one passage through the transform, or through its estimator: (L, D) -> (L, D)."""
        if self.chooses:
            return straight_through(self.transform, x, self.unit, generator)
        repaired: Tensor = self.transform(x, generator)
        return repaired


def straight_through(transform: Transform, x: Tensor, unit: float, generator: torch.Generator | None) -> Tensor:
    """Straight-through estimator (Bengio et al. 2013, arXiv 1308.3432): the transform's value, another's gradient.

    The gradient is that of x at the tokens' mean RMS. A plain identity would be wrong by the factor between the lengths
    of what comes in and what goes out, about a hundred after a LayerNorm.

    Args:
        transform: Whose value.
        x: (L, D).
        unit: Mean RMS of the token embeddings.
        generator: Of the transform's noise.
    """
    carrier = x * (unit / rms(x))[..., None]
    repaired = transform(x, generator)
    return repaired.detach() + (carrier - carrier.detach())


def save_latents(latents: Latents, folder: Path, about: dict[str, Any]) -> None:
    """Write config.json and model.safetensors: the weights last, so that a folder that has them is whole.

    Args:
        latents: What to save.
        folder: Where.
        about: What else is to be known of it; read back by `about_latents`.

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
    """Return the folder of a trained encoder: the one given, or `encoder` in it.

    Raises:
        UserError: None was given, or there is no trained encoder.
    """
    if not checkpoint:
        raise UserError("embed_source=latent: which encoder? Add checkpoint=FOLDER, that of a train.py task=latent")
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
        lm: Identity of the LM that shall read it.

    Raises:
        UserError: No encoder there, a damaged one, or one that was trained for another LM.
    """
    folder = find_latents(checkpoint)
    about = read_json(folder / "config.json")
    needed = {"format", "sha256", "trained_on", *LatentSpec.__dataclass_fields__}
    if not isinstance(about, dict) or not needed <= about.keys() or about["format"] != FORMAT:
        raise UserError(f"{folder / 'config.json'}: describes no encoder of format {FORMAT}; train it again")
    # As JSON has it: a tuple is a list there.
    if lm is not None and about["lm"] != json.loads(json.dumps(lm)):
        raise UserError(
            f"checkpoint={checkpoint}: was trained for the model {about['lm_name']}, and another LM is to read it; "
            "choose that model with model=..., or train an encoder for this one"
        )
    return about


@lru_cache(maxsize=2)
def _content(path: Path, digest: str) -> bytes:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise UserError(f"{path}: is not what its config.json says (another checksum); restore it, or train it again")
    return content


def load_latents(checkpoint: str, vocabulary: Vocabulary) -> Latents:
    """Load a trained encoder, frozen and in evaluation mode, on the vocabulary's device.

    Raises:
        UserError: No encoder there, a damaged one, or one for an LM of another width.
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
        raise UserError(f"{folder}: does not load as the encoder it says it is ({reason}); train it again") from error
    return latents.requires_grad_(False).eval().to(vocabulary.embeddings.device)
