"""Choices of conf/ as their files have them. Main entries: `choice_file()`, `default_dials()`."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from latentwire.harness import typed_config  # noqa: F401 (registers the resolvers that dials use)
from latentwire.harness.paths import CONF
from latentwire.harness.results import JsonObject


def choice_file(group: str, name: str) -> DictConfig:
    """Return the content of conf/GROUP/NAME.yaml, whose dials stand at the root."""
    loaded = OmegaConf.load(CONF / group / f"{name}.yaml")
    assert isinstance(loaded, DictConfig)
    return loaded


def default_dials(group: str, name: str, **others: object) -> JsonObject:
    """Return the dials of a choice with the values of its file.

    Args:
        group: Config group: "embed_transform".
        name: Name of the choice.
        others: Values of dials to use instead.
    """
    content = OmegaConf.merge(choice_file(group, name), others)
    return OmegaConf.to_container(content[group].dials, resolve=True)  # type: ignore[return-value]
