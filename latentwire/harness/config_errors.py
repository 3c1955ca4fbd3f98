"""Turn errors of Hydra and OmegaConf into messages for the user. Main entry: `explain()`."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from latentwire.harness import registry
from latentwire.harness.config_files import CHOOSERS, choices, included, root_settings, settings_with
from latentwire.harness.errors import UserError, causes
from latentwire.harness.overrides import Grid, grids_override
from latentwire.harness.paths import CONF
from latentwire.harness.plugins import named_plugins, plugin_dials
from latentwire.harness.processes import lost_process

PLUGIN_GROUPS = (
    "embed_transform",
    "embed_source",
    "encoder",
    "data",
    "sampler",
    "embedder",
)  # groups that plugins add to

_BUILT_IN = {"hydra/launcher": ("basic",)}  # choices whose configs come from packages


def explain(error: BaseException, arguments: list[str], entry: str) -> str | None:
    """Return the message for the user, or None if the error is a bug of the program.

    Args:
        error: Exception that stopped the program.
        arguments: Command line without the program's name.
        entry: Root of the config tree, `run` or `train`.
    """
    chain = list(causes(error))
    for cause in chain:
        if isinstance(cause, UserError):
            return str(cause)
        if (message := lost_process(cause)) is not None:
            return message
    text = "\n".join(str(cause) for cause in chain)
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_setting(match[1], arguments, entry)
    if match := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        known = ", ".join(sorted({*choices(match[1]), *plugin_dials(match[1]), *_BUILT_IN.get(match[1], ())}))
        hint = registry.PLUGIN_HINT if match[1] in PLUGIN_GROUPS and not named_plugins(arguments) else ""
        return f"{match[1]}={match[2]}: unknown; use one of {known}{hint}"
    if isinstance(error, HydraException | OmegaConfBaseException):
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return "; ".join(lines) or type(error).__name__
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}; choose another folder with out=FOLDER, or fix this one"
    return None


def _unknown_setting(key: str, arguments: list[str], entry: str) -> str:
    """Return the message for an unknown setting. A dial of another choice, such as a transform, is named as such."""
    given = next((a for a in arguments if a.startswith(f"{key}=")), key)
    default = next((choice for group, choice in included(CONF / f"{entry}.yaml") if group == "task"), "")
    task = _chosen("task", arguments, default)
    of_task = settings_with(CONF / "task" / f"{task}.yaml")
    for group, default in sorted(_default_choices(task, entry).items(), key=lambda item: item[0] not in of_task):
        owners = {choice: settings_with(path) for choice, path in choices(group).items()} | plugin_dials(group)
        having = [name for name, settings in owners.items() if key in settings]
        chosen = _chosen(group, arguments, default)
        if not having or chosen in having:
            continue
        preset = _chosen("sweep", arguments, "none")
        if group == "embed_transform" and preset != "none":
            return (
                f"{given}: the configurations of sweep={preset} set {key} themselves; leave it out and choose among "
                "them with only='PATTERN', or leave out sweep=..."
            )
        belongs = f"{key} belongs to {' and '.join(f'{group}={name}' for name in having)}"
        if set(having) & set(chosen.split(",")):
            return f"{given}: not every one of {group}={chosen} has this dial; {belongs}; give each its own dials: " + (
                _grids(group, chosen.split(","), owners, arguments)
            )
        dials = ", ".join(name for name in owners.get(chosen, []) if name != "kat") or "none"
        return f"{given}: {group}={chosen} has no such dial (its dials: {dials}); {belongs}"
    if nested := _nested_settings(key.partition(".")[0], task, arguments, entry):
        return f"{given}: no such setting; {nested}"
    known = ", ".join(sorted({*root_settings(CONF / f"{entry}.yaml"), *root_settings(CONF / "task" / f"{task}.yaml")}))
    return f"{given}: no such setting; the settings are {known}, and the groups are {', '.join(_groups())}"


def _nested_settings(group: str, task: str, arguments: list[str], entry: str) -> str:
    """Return the settings that the choice in a group has under the group's name, in words; "" without such ones."""
    files = (CONF / "task" / f"{task}.yaml", CONF / f"{entry}.yaml")
    default = next((choice for path in files for name, choice in included(path) if name == group), "")
    choice = _chosen(group, arguments, default)
    if path := choices(group).get(choice):
        node = OmegaConf.to_container(OmegaConf.load(path))
    else:
        things = ((each.node, each[choice]) for each in registry.ALL if each.setting == group and choice in each)
        node = next((make(choice, thing) for make, thing in things if make is not None), {})
    settings = node.get(group) if isinstance(node, dict) else None
    if not isinstance(settings, dict):
        return ""
    of_task = OmegaConf.select(OmegaConf.load(files[0]), group, default={})
    names = ", ".join(f"{group}.{name}" for name in {**settings, **of_task} if name != "name")
    return f"{group}={choice} has {names or 'no settings'}"


def _grids(group: str, chosen: list[str], owners: dict[str, list[str]], arguments: list[str]) -> str:
    """Return the override that sweeps over choices of a group, each with those given dials that it has."""
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    grids: list[Grid] = [
        {group: name, **{dial: list(given[dial].split(",")) for dial in owners.get(name, []) if dial in given}}
        for name in chosen
    ]
    return f"{grids_override(grids)} in place of these settings"


def _chosen(group: str, arguments: list[str], default: str) -> str:
    """Return the choice in a group: of the command line, else of its experiment, else of its preset."""
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    if group in given:
        return given[group]
    for chooser in CHOOSERS[1:]:
        path = CONF / chooser / f"{given.get(chooser, '')}.yaml"
        for name, choice in included(path):
            if name == group:
                return choice
    return default


def _default_choices(task: str, entry: str) -> dict[str, str]:
    """Return the default choice of a task in each group whose files have settings at the root."""
    groups = ("embed_transform", "embed_source", "data", "task", "pairs", "embedder", "encoder", "loss")
    of_tasks = sorted((CONF / "task").glob("*.yaml"), key=lambda path: path.stem != task)
    files = [*of_tasks[:1], CONF / f"{entry}.yaml", *of_tasks[1:]]  # the first file that chooses has precedence
    found = dict(reversed([chosen for path in files for chosen in included(path)]))
    return {group: found[group] for group in groups if group in found}


def _groups() -> list[str]:
    return sorted(path.name for path in CONF.iterdir() if path.is_dir())


def refuse_additions(arguments: list[str]) -> None:
    """Check that the command line adds and removes no settings: none would be read, or one would be missing.

    Raises:
        UserError: An argument begins with + or ~.
    """
    for argument in arguments:
        if re.match(r"(\+|~)(?!hydra)", argument) and not argument.startswith("++hydra"):
            raise UserError(f"{argument}: settings cannot be added or removed; leave out the {argument[0]}")


def refuse_renamed(arguments: list[str]) -> None:
    """Check that no setting is given by its former name.

    Raises:
        UserError: A setting was renamed. The message gives the new name.
    """
    renamed = OmegaConf.to_container(OmegaConf.load(CONF / "renamed.yaml"))
    assert isinstance(renamed, dict)
    for argument in arguments:
        key, sign, value = argument.partition("=")
        if key not in renamed or not sign:
            continue
        entry = renamed[key]
        name = entry["name"] if isinstance(entry, dict) else entry
        values = [entry["values"].get(part, part) for part in value.split(",")] if isinstance(entry, dict) else [value]
        raise UserError(f"{argument}: this setting has a new name; use {name}={','.join(map(str, values))}")


def require_task(arguments: list[str], entry: str, tasks: Iterable[str]) -> None:
    """Check, before the config is composed, that this entry has the chosen task, experiment or preset.

    Args:
        arguments: Command line without the program's name.
        entry: Root of the config tree, `run` or `train`.
        tasks: Names of the tasks of this entry.

    Raises:
        UserError: The other entry has the task, or the task is unknown.
    """
    task = _chosen("task", arguments, "")
    if task in tasks or not task.isidentifier():
        return
    given = next(a for group in CHOOSERS for a in arguments if a.startswith(f"{group}="))
    if (CONF / "task" / f"{task}.yaml").is_file():
        other = "train" if entry == "run" else "run"
        raise UserError(f"{given}: belongs to {other}.py; use python {other}.py {given}")
    raise UserError(f"task={task}: not a task of {entry}.py; use one of {', '.join(tasks)}")
