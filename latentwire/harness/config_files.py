"""What the files of conf/ define, read without composing them. Main entries: `root_settings()`, `taken_names()`."""

from __future__ import annotations

import shlex
from functools import cache
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from latentwire.harness.paths import CONF
from latentwire.harness.results import JsonObject

CHOOSERS = ("task", "experiment", "sweep")  # the first of these on the command line chooses the task
INTERNAL = {"defaults", "hydra", "task", "variant", "num_examples", "name", "group", "experiment"}  # set by no user


def root_settings(path: Path) -> list[str]:
    """Return the names of the plain settings that a config file defines at the root."""
    return [key for key, value in _at_root(path).items() if key not in INTERNAL and not isinstance(value, dict)]


def _at_root(path: Path) -> JsonObject:
    """Return what a config file defines at the root, which it can do with a header; {} for a choice without a file."""
    if path.parent != CONF and (not path.is_file() or "@package _global_" not in path.read_text(encoding="utf-8")):
        return {}
    node = OmegaConf.to_container(_load(path))
    assert isinstance(node, dict)
    return {str(key): value for key, value in node.items()}


@cache
def _load(path: Path) -> DictConfig:
    """Return the content of a config file; a choice without a file has none."""
    config = OmegaConf.load(path) if path.is_file() else OmegaConf.create()
    assert isinstance(config, DictConfig)
    return config


def included(path: Path) -> list[tuple[str, str]]:
    """Return each group that a config file includes, with its choice; the first of several choices."""
    entries = [entry for entry in _load(path).get("defaults", []) if isinstance(entry, DictConfig)]
    chosen = [(str(group).removeprefix("override "), choice) for entry in entries for group, choice in entry.items()]
    return [(group.strip("/"), str(choice if isinstance(choice, str) else choice[0])) for group, choice in chosen]


def choices(group: str) -> dict[str, Path]:
    """Return the files of a config group by the names of the choices."""
    return {path.stem: path for path in sorted((CONF / group).glob("*.yaml"))}


def settings_with(path: Path) -> list[str]:
    """Return the root settings and groups of a config file and of the files that it includes."""
    found = root_settings(path)
    for group, choice in included(path):
        found += [group, *root_settings(CONF / group / f"{choice}.yaml")]
    return found


def companions(group: str) -> list[str]:
    """Return the groups from which a config can have a choice together with a choice of this group."""
    found: list[str] = []
    for path in (CONF / "run.yaml", *choices("task").values()):
        groups = [name for name, _ in included(path)]
        found += [name for name in groups if group in groups and name not in (group, *CHOOSERS, "control")]
    return sorted(set(found))


def taken_names(group: str) -> dict[str, str]:
    """Return the names at the root of a config that has a choice of a group, without the group's own names.

    Args:
        group: Config group: "embed_transform".

    Returns:
        The owner of each name: "embed_source=scaled", "task=latent", "run.py" or "run.py and train.py".
    """
    owners = {path.name: "the program" for path in CONF.iterdir() if path.is_dir()}
    for entry in ("run", "train"):
        names = _at_root(CONF / f"{entry}.yaml")
        owners |= {name: f"run.py and {entry}.py" if owners.get(name) == "run.py" else f"{entry}.py" for name in names}
    for task, path in choices("task").items():
        if group in dict(included(path)):
            owners |= dict.fromkeys(_at_root(path), f"task={task}")
    for other in companions(group):
        for choice, path in choices(other).items():
            owners |= dict.fromkeys(_at_root(path), f"{other}={choice}")
    return owners


def repeated_choices(cfg: DictConfig) -> str:
    """Return the overrides with which another command has the model and the plugins of a config, each after a space."""
    name, plugins = str(cfg.model.name), cfg.plugins
    path = CONF / "model" / f"{name}.yaml"
    written = OmegaConf.to_container(_load(path).get("model", OmegaConf.create()))
    assert isinstance(written, dict)
    found = [f"model={name}"] if ("model", name) not in included(CONF / "run.yaml") else []
    found += [f"model.{key}={value}" for key, value in cfg.model.items() if written.get(key) != value]
    if plugins:
        found.append(f"plugins=[{plugins if isinstance(plugins, str) else ','.join(plugins)}]")
    return "".join(f" {shlex.quote(override) if ' ' in override else override}" for override in found)
