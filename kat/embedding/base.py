"""What every embedder is: a way to turn texts into vectors, by name. Main entry: `register_embedder()`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from kat.data.prompts import TEXT_FORMAT, Prompt
from kat.embedding.checked import CheckedEmbedder
from kat.embedding.pooling import Embedder
from latentwire.harness.errors import UserError
from latentwire.harness.registry import Registry
from latentwire.harness.results import JsonObject
from latentwire.lm.spec import ModelSpec

Define = TypeVar("Define", bound=Callable[..., Any])
Settings = Mapping[str, object]  # settings of an embedder by name: the node `embedder` without its name


@dataclass(frozen=True)
class EmbedderInputs:
    """What an embedder is loaded with, besides its own settings: the language model of the config, device and dtype."""

    model: ModelSpec
    device: torch.device
    dtype: torch.dtype


@dataclass
class EmbeddedPrompts:
    """Embeddings of prompts, and how they were made.

    Attributes:
        ids: Ids of N prompts.
        emb: Unit rows, (N, D); None in all processes but the main one.
        too_long: Ids of prompts that the embedder cannot read.
        model: Name of the language model, if there is one.
        tokens: Number of tokens of all texts; None if unknown.
        max_tokens: Length of the longest text that can be embedded; None if unknown.
        taken_from: File from which the rows were taken; None if they were computed.
    """

    ids: list[str]
    emb: Tensor | None
    too_long: list[str]
    model: str | None
    tokens: int | None = None
    max_tokens: int | None = None
    taken_from: str | None = None


class StoredEmbeddings(Protocol):
    """Embeddings of known prompts, which cannot embed another text."""

    def identity(self) -> JsonObject:
        """Return everything that the embeddings depend on except the texts."""

    def rows(self, prompts: Sequence[Prompt]) -> EmbeddedPrompts:
        """Return the rows of prompts."""


@dataclass(frozen=True)
class TextEmbedderKind:
    """An embedder of any text.

    Attributes:
        define: Class or function that loads it from `EmbedderInputs` and its settings.
        uses_model: Whether it uses the language model of the config.
        identity: Function from its settings to what they contribute to an embedding.
    """

    define: Callable[..., Embedder]
    uses_model: bool
    identity: Callable[..., JsonObject]


@dataclass(frozen=True)
class StoredKind:
    """Stored embeddings; `define` opens them from `EmbedderInputs` and their settings."""

    define: Callable[..., StoredEmbeddings]


def _node(name: str, kind: TextEmbedderKind | StoredKind) -> JsonObject:
    """Return the config of an embedder without a YAML file: its name and the defaults of its settings."""
    settings = {setting: parameter.default for setting, parameter in _settings_of(kind).items()}
    if missing := [setting for setting, default in settings.items() if default is inspect.Parameter.empty]:
        raise UserError(
            f"embedder={name}: its setting {missing[0]} has no default; write {missing[0]}=VALUE in the signature of "
            f"{kind.define.__qualname__}, or add conf/embedder/{name}.yaml"
        )
    return {"embedder": {"name": name, **settings}}


EMBEDDERS: Registry[TextEmbedderKind | StoredKind] = Registry("embedder", "embedder", _node)


def _settings_of(kind: TextEmbedderKind | StoredKind) -> dict[str, inspect.Parameter]:
    """Return the settings of an embedder: the keyword-only arguments of the class or function that defines it."""
    parameters = inspect.signature(kind.define).parameters
    return {name: parameter for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}


def register_embedder(
    name: str, *, uses_model: bool = False, identity: Callable[..., JsonObject] | None = None
) -> Callable[[Define], Define]:
    """Return a decorator that registers a class or function as embedder=NAME.

    It takes `EmbedderInputs`, and its settings as keyword-only arguments with defaults: numbers, texts, true or false.
    It returns an object of the protocol `kat.embedding.pooling.Embedder`; a class is such an object itself. The
    settings are the node `embedder` of the config, and embeddings are made again if one changes.

    Args:
        name: Name of the embedder.
        uses_model: Whether it uses the language model of the config, so that embeddings depend on the model.
        identity: Function from the settings to the part of the identity that they decide. Default: all settings.

    Raises:
        UserError: The name is taken or not an identifier.
    """

    def register(define: Define) -> Define:
        EMBEDDERS.add(name, TextEmbedderKind(define, uses_model, identity or _all_settings))
        return define

    return register


def register_stored(name: str) -> Callable[[Define], Define]:
    """Return a decorator that registers a class of `StoredEmbeddings` as embedder=NAME."""

    def register(define: Define) -> Define:
        EMBEDDERS.add(name, StoredKind(define))
        return define

    return register


def _all_settings(**settings: object) -> JsonObject:
    return {"settings": settings} if settings else {}


@dataclass(frozen=True)
class EmbedderSpec:
    """The choice of an embedder with its settings, checked by `of`."""

    name: str
    settings: Settings
    inputs: EmbedderInputs

    @classmethod
    def of(cls, name: str, settings: Settings, inputs: EmbedderInputs) -> EmbedderSpec:
        """Return the choice of an embedder, without loading it.

        Args:
            name: Name of the embedder.
            settings: Values of its settings. A setting that is left out has its default.
            inputs: The language model, the device and the data type.

        Raises:
            UserError: The embedder is unknown, or a setting is unknown, missing or of another type.
        """
        known = _settings_of(EMBEDDERS[name])
        if unknown := sorted(settings.keys() - known.keys()):
            raise UserError(f"embedder.{unknown[0]}={settings[unknown[0]]}: embedder={name} has no such setting (its "
                            f"settings: {', '.join(known) or 'none'}); leave it out")  # fmt: skip
        values = {setting: settings.get(setting, parameter.default) for setting, parameter in known.items()}
        if missing := [setting for setting, value in values.items() if value is inspect.Parameter.empty]:
            raise UserError(f"embedder.{missing[0]}: embedder={name} needs a value; choose embedder={name} as a group, "
                            f"or write embedder.{missing[0]}=VALUE")  # fmt: skip
        return cls(name, {setting: _converted(known[setting], value) for setting, value in values.items()}, inputs)

    @property
    def model_name(self) -> str | None:
        """Name of the language model; None if the embedder does not use it."""
        kind = EMBEDDERS[self.name]
        return self.inputs.model.name if isinstance(kind, TextEmbedderKind) and kind.uses_model else None

    def identity(self) -> JsonObject:
        """Return everything that an embedding depends on except its text, without loading a model."""
        kind = EMBEDDERS[self.name]
        if isinstance(kind, StoredKind):
            found = self.stored().identity()
        else:
            dtype = str(self.inputs.dtype).removeprefix("torch.")
            found = {"embedder": self.name, "text": TEXT_FORMAT, "dtype": dtype, **kind.identity(**self.settings)}
            if kind.uses_model:
                found["model"] = self.inputs.model.identity()
        source = EMBEDDERS.source_digest(self.name)
        return found if source is None else {**found, "source": source}

    def require_texts(self, what: str) -> None:
        """Check that new texts can be embedded.

        Args:
            what: The texts, for the message: "a query".

        Raises:
            UserError: The embeddings are stored ones.
        """
        if isinstance(EMBEDDERS[self.name], StoredKind):
            raise UserError(f"embedder={self.name}: a file cannot embed {what}; give an embedder of texts, such as "
                            "embedder=hidden")  # fmt: skip

    def load(self) -> Embedder:
        """Load the embedder.

        Raises:
            UserError: The model cannot be loaded or does not suit the embedder, or the embedder lacks an attribute.
        """
        kind = EMBEDDERS[self.name]
        assert isinstance(kind, TextEmbedderKind), self.name
        return CheckedEmbedder(self.name, kind.define(self.inputs, **self.settings))

    def stored(self) -> StoredEmbeddings:
        """Return the stored embeddings of a file."""
        kind = EMBEDDERS[self.name]
        assert isinstance(kind, StoredKind), self.name
        return kind.define(self.inputs, **self.settings)

    @property
    def is_stored(self) -> bool:
        """Whether the embeddings are stored ones."""
        return isinstance(EMBEDDERS[self.name], StoredKind)


def _converted(parameter: inspect.Parameter, value: object) -> object:
    """Return a value as its setting's type: a whole number given for a float becomes a float."""
    words = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "a text"}
    kind = getattr(parameter.annotation, "__name__", str(parameter.annotation))
    given = type(value).__name__
    if kind in words and given != kind and not (kind == "float" and given == "int"):
        raise UserError(f"embedder.{parameter.name}={value}: expected {words[kind]}")
    return float(value) if kind == "float" and isinstance(value, int) else value
