"""Modules of the user that add to the registries. Main entry: `load_plugins()`."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from latentwire.harness import registry
from latentwire.harness.config_files import choices, taken_names
from latentwire.harness.errors import UserError
from latentwire.harness.paths import CONF
from latentwire.harness.results import JsonObject

PLAIN_GROUPS = ("task", "experiment", "control")  # groups whose choices set a plain value of the same name
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
    for group, name, node in _own_nodes():
        taken = taken_names(group)
        for dial in _dials(node):
            if dial in taken:
                raise _taken_dial(group, name, dial, taken[dial])
        ConfigStore.instance().store(group=group, name=name, node=node, package="_global_")


def _taken_dial(group: str, name: str, dial: str, owner: str) -> UserError:
    return UserError(f"{group}={name}: its dial {dial} is also a setting of {owner}; rename the dial")


def require_choices(cfg: DictConfig) -> None:
    """Check what a composed config has chosen in the config groups.

    Raises:
        UserError: A group has a plain value in place of a choice, or two chosen plugins have a dial of one name.
    """
    for group in sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in PLAIN_GROUPS):
        if group in cfg and not isinstance(cfg[group], DictConfig):
            raise UserError(
                f"{group}={cfg[group]}: is a plain value in a file, not a choice of the group; write it under "
                f"defaults: - override /{group}: {cfg[group]}"
            )
    owners: dict[str, str] = {}
    for group, name, node in _own_nodes():
        if group not in cfg or cfg[group].get("name") != name:
            continue
        for dial in _dials(node):
            if dial in owners:
                raise _taken_dial(group, name, dial, owners[dial])
            owners[dial] = f"{group}={name}"


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
    found = [name for name in names if isinstance(name, str) and _is_module(name)]
    if len(found) < len(names):
        raise _not_a_list(value)
    return found


def _is_module(name: str) -> bool:
    """Return whether a text can be the name of a module, and is not the name of a file."""
    return all(part.isidentifier() for part in name.split(".")) and not name.endswith(".py")


def _not_a_list(value: object) -> UserError:
    given = str(value).replace("'", "")
    name = given.strip("[] ").removesuffix(".py")
    return UserError(
        f"plugins={given}: not a list of modules; write plugins=[{name if _is_module(name) else 'my_module'}]"
    )
