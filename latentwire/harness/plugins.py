"""Modules of the user that add to the registries. Main entry: `load_plugins()`."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterable, Sequence

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from latentwire.harness import registry
from latentwire.harness.errors import UserError
from latentwire.harness.paths import CONF

ENTRY_POINTS = "latentwire.plugins"  # group in which an installed package names its module


def load_plugins(names: Iterable[str]) -> None:
    """Import plugins, and give each thing that they register a config unless conf/ has a file for it.

    Args:
        names: Modules, as in `plugins=[my_module]`. Modules that installed packages name as entry points of the group
            latentwire.plugins are imported too.

    Raises:
        UserError: A module cannot be imported, or a dial of a registered class has no default.
    """
    for name in names:
        _import(name, f"plugins={name}", "run in the folder that has it, set PYTHONPATH, or install it")
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        _import(point.value.partition(":")[0], f"the entry point {point.name} of {ENTRY_POINTS}", "repair or remove it")
    _add_config_nodes()


def _import(module: str, what: str, remedy: str) -> None:
    try:
        importlib.import_module(module)
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{what}: cannot be imported ({error}); {remedy}") from error
    except Exception as error:  # the module is the user's, so any error in it is the user's to fix
        raise UserError(f"{what}: raises {type(error).__name__} when it is imported ({error}); fix {module}") from error


def _add_config_nodes() -> None:
    store = ConfigStore.instance()
    for each in registry.ALL:
        for name, thing in each.items():
            if each.node is not None and not (CONF / each.setting / f"{name}.yaml").is_file():
                store.store(group=each.setting, name=name, node=each.node(name, thing), package="_global_")


def plugin_choices(group: str) -> list[str]:
    """Return the names in a config group that plugins registered."""
    return sorted(
        name
        for each in registry.ALL
        if each.node is not None and each.setting == group
        for name in each
        if not (CONF / group / f"{name}.yaml").is_file()
    )


def named_plugins(arguments: Sequence[str]) -> list[str]:
    """Return the plugins that a command line names, or else the experiment that it chooses.

    They must be imported before the config is composed, since a config may choose what they register.

    Args:
        arguments: Command line without the program's name.

    Raises:
        UserError: The value of `plugins` is not a list of names.
    """
    given = dict(argument.partition("=")[::2] for argument in arguments)
    if "plugins" in given:
        return _names(given["plugins"])
    path = CONF / "experiment" / f"{given.get('experiment', '')}.yaml"
    experiment = OmegaConf.load(path) if path.is_file() else OmegaConf.create()
    assert isinstance(experiment, DictConfig)
    return [str(name) for name in experiment.get("plugins", [])]


def _names(value: str) -> list[str]:
    try:
        parsed = OmegaConf.create(f"names: {value}").names
    except OmegaConfBaseException as error:
        raise UserError(f"plugins={value}: not a list of modules; write plugins=[my_module]") from error
    names = [parsed] if isinstance(parsed, str) else list(parsed or [])
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"plugins={value}: not a list of modules; write plugins=[my_module]")
    return names
