"""A frozen causal LM with its tokenizer, loaded once per process: embedded, hub, local folder, GGUF or tiny."""

from __future__ import annotations

import contextlib
import errno
import io
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from latentwire.harness.assets import cached, file_sha256, hub_commit
from latentwire.harness.errors import UserError
from latentwire.harness.results import writing
from latentwire.lm.gguf import build_from_wheel, convert_gguf
from latentwire.lm.tiny import TINY, build_tiny

ORIGINS = ("wheel", "hub", "path", "tiny_random")


@dataclass
class ModelSpec:
    """Which model to load; the `model` node of the config.

    `origin` decides which of the other fields are read: wheel (package, sha256, member), hub (repo, revision),
    path (a local folder, a GGUF file, or else the name of a hub repository) or tiny_random (nothing).
    """

    name: str
    origin: str
    package: str = ""
    sha256: str = ""
    member: str = ""
    repo: str = ""
    revision: str = "main"
    path: str = ""

    def identity(self) -> dict[str, Any]:
        """Return what distinguishes this model's weights, without loading them."""
        if self.origin == "wheel":
            return {"package": self.package, "sha256": self.sha256, "member": self.member}
        if self.origin == "tiny_random":
            return {"tiny_random": TINY}
        local = Path(self.path).expanduser()
        if self.origin == "path" and local.is_file():
            return {"gguf": file_sha256(local)}
        if self.origin == "path" and local.is_dir():
            stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(local.iterdir()) if p.is_file()]
            return {"folder": [list(stat) for stat in stats]}
        repo = self.repo or self.path
        return {"repo": repo, "commit": hub_commit(repo, self.revision)}


@dataclass(frozen=True)
class LanguageModel:
    """A frozen causal LM on its device, in evaluation mode."""

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
        """Positions the model was made for, in tokens; without a stated limit, as many as wanted."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize)

    @torch.no_grad()
    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return the output of the embedding module, scaled as the model itself scales it: (...) -> (..., D)."""
        return self.model.get_input_embeddings()(token_ids.to(self.device))

    @torch.no_grad()
    def token_embeddings(self) -> torch.Tensor:
        """Return the output of the embedding module for every token it has: (V, D)."""
        weight = self.model.get_input_embeddings().weight
        assert isinstance(weight, torch.Tensor)
        return self.embed(torch.arange(len(weight), device=self.device)).clone()


def load_model(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> LanguageModel:
    """Load a model and its tokenizer, frozen, from wherever the spec says.

    Raises:
        UserError: Unknown, gated, unreachable, damaged or unusable; says which and what to do.
    """
    if spec.origin not in ORIGINS:
        raise UserError(f"model.origin={spec.origin}: unknown; use one of {', '.join(ORIGINS)}")
    where, options = _locate(spec)
    with _explained(spec, where), bars_on_terminals_only():
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
        model = _load_whole(where, dtype=dtype, use_safetensors=True, **options)
    if model.get_input_embeddings() is None:
        raise UserError(f"{spec.name}: has no input embeddings; choose a causal language model")
    model.requires_grad_(False).eval().to(device)
    return LanguageModel(model, tokenizer)


def load_tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer alone.

    Raises:
        UserError: As `load_model` says.
    """
    where, options = _locate(spec)
    with _explained(spec, where), bars_on_terminals_only():
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(where, **options)
    return tokenizer


def _locate(spec: ModelSpec) -> tuple[str, dict[str, Any]]:
    """Return what from_pretrained wants: a folder or a repository, and its options."""
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
        raise UserError(f"model.path={spec.path}: is the folder of a run; write model.path={local / 'model'}")
    if local.is_file():
        with local.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise UserError(f"model.path={spec.path}: is a file but no GGUF file; give a GGUF file or a folder")
        key = f"models/gguf-{file_sha256(local)[:12]}"
        return str(cached(key, lambda folder: convert_gguf(local, folder))), {}
    if local.is_dir():
        if not (local / "config.json").is_file():
            raise UserError(
                f"model.path={spec.path}: the folder has no config.json, so it holds no model; "
                "give a folder written by save_pretrained"
            )
        if any(local.glob("*.bin")):
            weight_files(local, f"model.path={spec.path}")
        return str(local), {}
    if spec.path.count("/") == 1 and not spec.path.startswith((".", "/", "~")):
        return spec.path, {"revision": hub_commit(spec.path, spec.revision)}
    raise UserError(f"model.path={spec.path}: no such file or folder, and no ORG/NAME of the hub; check the spelling")


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


def _load_whole(where: str, **options: Any) -> PreTrainedModel:
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


@contextlib.contextmanager
def _explained(spec: ModelSpec, where: str) -> Iterator[None]:
    """Turn what loading may raise into messages for the user."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
        if isinstance(error, TypeError | AttributeError) and not Path(where).is_dir():
            raise  # a fault of the program; in a local folder it may be the files'
        causes = list(_chain(error))
        if any(isinstance(cause, OSError) and cause.errno == errno.ENOSPC for cause in causes):
            raise UserError(f"{spec.name}: the disk is full; free some space and run again") from error
        if any(isinstance(cause, GatedRepoError) for cause in causes) or "gated repo" in str(error):
            raise UserError(
                f"{spec.name}: the hub repository {where} is gated; accept its licence on the hub, then log in "
                "with `hf auth login` or set HF_TOKEN"
            ) from error
        if any(isinstance(cause, RevisionNotFoundError) for cause in causes):
            raise UserError(f"{spec.name}: {where} has no revision {spec.revision}; check model.revision") from error
        if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
            raise UserError(
                f"{spec.name}: the hub has no model {where} that you may read; check the spelling, or log in with "
                "`hf auth login` if it is private"
            ) from error
        if Path(where).is_dir():
            raise UserError(
                f"{spec.name}: {where} does not load as a causal language model ({first_line(error)}); "
                "check that the folder is complete and of an architecture that transformers knows"
            ) from error
        if _is_network_trouble(causes):
            raise UserError(
                f"{spec.name}: the hub could not be reached for {where}; check the network (HF_HUB_OFFLINE and "
                "proxies too), or use model=smollm2, which comes from the package index, or model=path "
                "model.path=FOLDER"
            ) from error
        raise UserError(
            f"{spec.name}: {where} does not load as a causal language model ({first_line(error)}); choose a model "
            "whose architecture transformers knows without remote code"
        ) from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_network_trouble(causes: list[BaseException]) -> bool:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    trouble = (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, ConnectionError, TimeoutError)
    names = {type(cause).__name__ for cause in causes}
    return any(isinstance(cause, trouble) for cause in causes) or bool(
        names & {"ConnectError", "ConnectTimeout", "ReadTimeout", "ProxyError"}
    )


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
