"""Frozen causal LMs with tokenizers, from a wheel, the hub, a folder or a GGUF file. Main entry: `load_model()`."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from latentwire.harness.assets import cached, file_sha256, hub_commit
from latentwire.harness.errors import UserError, causes, first_line
from latentwire.lm.gguf import build_from_wheel, convert_gguf
from latentwire.lm.model_folder import bars_on_terminals_only, load_whole, weight_files
from latentwire.lm.spec import ORIGINS, ModelSpec
from latentwire.lm.tiny import TINY, build_tiny


@dataclass(frozen=True)
class LanguageModel:
    """A frozen causal LM on its device, in evaluation mode.

    >>> from latentwire import LanguageModel, load_model_by_name
    >>> lm = load_model_by_name("tiny_random")
    >>> LanguageModel(lm.model, lm.tokenizer).token_embeddings().shape
    torch.Size([2048, 64])
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.model.dtype

    @property
    def context_length(self) -> int:
        """Largest number of positions, in tokens; the largest integer if the config states no limit."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize)

    @torch.no_grad()
    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return the output of the embedding module, with the model's own scaling: (...) -> (..., D)."""
        embeds: torch.Tensor = self.model.get_input_embeddings()(token_ids.to(self.device))
        return embeds

    @torch.no_grad()
    def token_embeddings(self) -> torch.Tensor:
        """Return the output of the embedding module for every token: (V, D)."""
        weight = self.model.get_input_embeddings().weight
        assert isinstance(weight, torch.Tensor)
        return self.embed(torch.arange(len(weight), device=self.device)).clone()


def layers_of(lm: LanguageModel) -> list[nn.Module]:
    """Return the layers of an LM, in order.

    Raises:
        UserError: The LM has no list of its layers.
    """
    count = int(lm.model.config.get_text_config().num_hidden_layers)
    for module in lm.model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise UserError(
        f"{type(lm.model).__name__}: has no list of {count} layers, so states between layers are unknown; choose "
        "another model=..."
    )


def load_model(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> LanguageModel:
    """Load a model, frozen, with its tokenizer.

    Args:
        spec: Which model.
        device: Device of the weights.
        dtype: Dtype of the weights.

    Returns:
        The model and its tokenizer.

    Raises:
        UserError: The model is unknown, gated, unreachable, damaged or not a causal LM.
    """
    if spec.origin not in ORIGINS:
        raise UserError(f"model.origin={spec.origin}: unknown; use one of {', '.join(ORIGINS)}")
    where, options = _locate(spec)
    with _explained(spec, where), bars_on_terminals_only():
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
        model = load_whole(where, dtype=dtype, use_safetensors=True, **options)
    if model.get_input_embeddings() is None:
        raise UserError(f"{spec.name}: has no input embeddings; choose a causal language model")
    model.requires_grad_(False).eval().to(device)
    return LanguageModel(model, tokenizer)


def load_tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer without the model.

    Raises:
        UserError: The model is unknown, gated, unreachable or damaged.
    """
    where, options = _locate(spec)
    with _explained(spec, where), bars_on_terminals_only():
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(where, **options)
    return tokenizer


def _locate(spec: ModelSpec) -> tuple[str, dict[str, str]]:
    """Return the arguments of from_pretrained: a folder or a repository, and its options."""
    if spec.origin == "wheel":
        key = f"models/{spec.name}-{spec.sha256[:12]}"
        return str(cached(key, lambda folder: build_from_wheel(spec, folder))), {}
    if spec.origin == "tiny_random":
        return str(cached(f"models/tiny_random-{TINY['version']}", build_tiny)), {}
    if spec.origin == "hub":
        return spec.repo, {"revision": hub_commit(spec.repo, spec.revision)}
    if not spec.path:
        raise UserError("model=path: no path given; add model.path=FOLDER, FILE.gguf or ORG/NAME, or set MODEL_ID")
    local = Path(spec.path).expanduser()
    if (local / "model" / "config.json").is_file():
        raise UserError(f"model.path={spec.path}: is the folder of a run; use model.path={local / 'model'}")
    if local.is_file():
        with local.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise UserError(f"model.path={spec.path}: the file is not in GGUF format; give a GGUF file or a folder")
        key = f"models/gguf-{file_sha256(local)[:12]}"
        return str(cached(key, lambda folder: convert_gguf(local, folder))), {}
    if local.is_dir():
        if not (local / "config.json").is_file():
            raise UserError(
                f"model.path={spec.path}: the folder has no config.json, so it does not hold a model; "
                "give a folder written by save_pretrained"
            )
        if any(local.glob("*.bin")):
            weight_files(local, f"model.path={spec.path}")
        return str(local), {}
    if spec.path.count("/") == 1 and not spec.path.startswith((".", "/", "~")):
        return spec.path, {"revision": hub_commit(spec.path, spec.revision)}
    raise UserError(f"model.path={spec.path}: no such file or folder, nor an ORG/NAME of the hub; check the spelling")


@contextlib.contextmanager
def _explained(spec: ModelSpec, where: str) -> Iterator[None]:
    """Turn errors of loading into messages for the user."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
        if isinstance(error, TypeError | AttributeError) and not Path(where).is_dir():
            raise  # a bug in the code; for a local folder, damaged files can raise these too
        chain = list(causes(error))
        if any(isinstance(cause, OSError) and cause.errno == errno.ENOSPC for cause in chain):
            raise UserError(f"{spec.name}: the disk is full; free some space and run again") from error
        if any(isinstance(cause, GatedRepoError) for cause in chain) or "gated repo" in str(error):
            raise UserError(
                f"{spec.name}: the hub repository {where} is gated; accept its licence on the hub, then log in "
                "with `hf auth login` or set HF_TOKEN"
            ) from error
        if any(isinstance(cause, RevisionNotFoundError) for cause in chain):
            raise UserError(f"{spec.name}: {where} has no revision {spec.revision}; check model.revision") from error
        if any(isinstance(cause, RepositoryNotFoundError) for cause in chain):
            raise UserError(
                f"{spec.name}: the hub has no model {where} that you may read; check the spelling, or log in with "
                "`hf auth login` if it is private"
            ) from error
        if Path(where).is_dir():
            raise UserError(
                f"{spec.name}: {where} does not load as a causal language model ({first_line(error)}); "
                "check that the folder is complete and that transformers knows its architecture"
            ) from error
        if _is_network_error(chain):
            raise UserError(
                f"{spec.name}: the hub could not be reached for {where}; check the network, HF_HUB_OFFLINE and "
                "proxies, or use model=smollm2 (from the package index) or model=path model.path=FOLDER"
            ) from error
        raise UserError(
            f"{spec.name}: {where} does not load as a causal language model ({first_line(error)}); choose a model "
            "whose architecture transformers knows without remote code"
        ) from error


def _is_network_error(chain: list[BaseException]) -> bool:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    network_errors = (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, ConnectionError, TimeoutError)
    names = {type(cause).__name__ for cause in chain}
    return any(isinstance(cause, network_errors) for cause in chain) or bool(
        names & {"ConnectError", "ConnectTimeout", "ReadTimeout", "ProxyError"}
    )
