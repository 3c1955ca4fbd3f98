"""Modules of the user that add to the registries. Main entry: `load_plugins()`."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from latentwire.harness import registry
from latentwire.harness.config_files import choices, companions, taken_names
from latentwire.harness.errors import UserError
from latentwire.harness.results import JsonObject

ENTRY_POINTS = "latentwire.plugins"  # group in which an installed package names its module


def load_plugins(names: Iterable[str]) -> None:
    """Import plugins, and give each thing that they register a config unless conf/ has a file for it.

    Args:
        names: Modules, as in `plugins=[my_module]`; those in the working folder are found too. Modules that installed
            packages name as entry points of the group latentwire.plugins are imported as well.

    Raises:
        UserError: A module cannot be imported, or a dial of a registered class has no default or the name of another
            setting.
    """
    for name in names:
        search_working_folder()
        _import(name, f"plugins={name}", "run in the folder that has it, set PYTHONPATH, or install it")
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        _import(point.value.partition(":")[0], f"the entry point {point.name} of {ENTRY_POINTS}", "repair or remove it")
    _add_config_nodes()


def search_working_folder() -> None:
    """Let imports find modules in the working folder too, after all other places."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))


def _import(module: str, what: str, remedy: str) -> None:
    try:
        importlib.import_module(module)
    except UserError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise UserError(f"{what}: no module of this name; {remedy}") from error
        raise UserError(f"{what}: needs a module that is not there ({error}); install it, or fix {module}") from error
    except Exception as error:  # the module is the user's, so any error in it is the user's to fix
        raise UserError(f"{what}: raises {type(error).__name__} when it is imported ({error}); fix {module}") from error


def _own_nodes() -> Iterator[tuple[str, str, JsonObject]]:
    """Yield group, name and config of each registered thing that conf/ has no file for."""
    for each in registry.ALL:
        for name, thing in each.items():
            if each.node is not None and name not in choices(each.setting):
                yield each.setting, name, each.node(name, thing)


def _add_config_nodes() -> None:
    nodes = list(_own_nodes())
    for group, name, node in nodes:
        taken, others = taken_names(group), companions(group)
        for other, choice, further in nodes:
            taken |= dict.fromkeys(_dials(further) if other in others else [], f"{other}={choice}")
        for dial in _dials(node):
            if dial in taken:
                raise UserError(f"{group}={name}: its dial {dial} is also a setting of {taken[dial]}; rename the dial")
        ConfigStore.instance().store(group=group, name=name, node=node, package="_global_")


def _dials(node: JsonObject) -> list[str]:
    """Return the dials in a config, which stand at its root."""
    return [key for key, value in node.items() if not isinstance(value, dict)]


def plugin_dials(group: str) -> dict[str, list[str]]:
    """Return the choices that plugins add to a config group, each with its dials."""
    return {name: _dials(node) for setting, name, node in _own_nodes() if setting == group}


def named_plugins(arguments: Sequence[str]) -> list[str]:
    """Return the plugins that a command line names, or else its experiment, or else its preset of a sweep.

    They must be imported before the config is composed, since a config may choose what they register.

    Args:
        arguments: Command line without the program's name.

    Raises:
        UserError: The value of `plugins` is not a list of names.
    """
    given = dict(argument.partition("=")[::2] for argument in arguments)
    if "plugins" in given:
        try:
            return plugin_names(OmegaConf.create(f"names: {given['plugins']}").names)
        except OmegaConfBaseException as error:
            raise _not_a_list(given["plugins"]) from error
    for chooser in ("experiment", "sweep"):
        path = choices(chooser).get(given.get(chooser, ""))
        config = OmegaConf.load(path) if path else OmegaConf.create()
        if "plugins" in config:
            return plugin_names(config.plugins)
    return []


def plugin_names(value: object) -> list[str]:
    """Return the modules in a value of the setting `plugins`: a list of names, or one name.

    Raises:
        UserError: It is something else.
    """
    names: list[object] = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    found = [name for name in names if isinstance(name, str) and all(part.isidentifier() for part in name.split("."))]
    if len(found) < len(names):
        raise _not_a_list(value)
    return found


def _not_a_list(value: object) -> UserError:
    return UserError(f"plugins={value}: not a list of modules; write plugins=[my_module]")
