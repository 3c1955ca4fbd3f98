"""cfg.task -> the job; the one place both entries call. Errors become messages here."""

from __future__ import annotations

import importlib
import itertools
import os
import re
import shlex
import sys
import textwrap
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from latentwire.harness import processes
from latentwire.harness.errors import UserError
from latentwire.harness.progress import rank, speaks

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"

T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """A job by the name of its function, 'module:function'; imported when it is asked for.

    `run(cfg)` does one configuration and returns its result; `finish(cfg, results)` sees all those of a sweep.
    `direct(cfg, jobs, compose)` decides what a sweep runs: a generator that yields jobs, is sent their results, and
    returns the results to finish with. Without it all jobs are run, and that is it.
    """

    run: str
    finish: str | None = None
    direct: str | None = None


tasks: dict[str, Task] = {}
entry = "run"  # root of the config tree that this program reads: run or train
position: tuple[int, int] | None = None  # this job among those of the sweep, (3, 35)
counted = time.monotonic()  # when this command began, or when a result last counted its seconds


def launch(
    config_name: str, known_tasks: dict[str, Task], arguments: list[str] | None = None, about: str | None = None
) -> None:
    """Run what the command line asks for and exit: 0, or 1 with a message where the user can mend something.

    Args:
        config_name: Root of the config tree, `run` or `train`.
        known_tasks: The jobs of this entry.
        arguments: The command line, without the program's name; by default the real one.
        about: What --help prints before the tasks: what this entry does, and commands that people type.
    """
    global entry, counted
    entry = config_name
    counted = time.monotonic()
    tasks.clear()
    tasks.update(known_tasks)
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(_help(about or ""))
        return
    sys.argv = [sys.argv[0], *map(_as_text, _with_environment(arguments))]
    asked_for_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing; what is said is decided below
    try:
        processes.hand_over(arguments)
        _refuse_additions(arguments)
        _require_task(arguments)
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(_run)()
    except (Exception, _StoppedError) as raised:
        error = raised.error if isinstance(raised, _StoppedError) else raised
        message = explain(error, arguments)
        if message is None or asked_for_traceback:
            raise error from None
        print(f"error: {message}" if speaks() else f"error in process {rank()}: {message}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        if speaks():
            print("interrupted; the same command goes on with what is not finished", file=sys.stderr)
        sys.exit(130)
    finally:
        _leave_process_group()


class _StoppedError(BaseException):
    """Carries a job's exception past Hydra, which would print its own lines about it first."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def _run(cfg: DictConfig) -> Any:
    try:
        if cfg.task not in tasks:
            raise UserError(f"task={cfg.task}: not a task of {entry}.py; use one of {', '.join(tasks)}")
        return _function(tasks[cfg.task].run)(cfg)
    except Exception as error:
        raise _StoppedError(error) from error


def _help(about: str) -> str:
    """Return what --help prints: what the program does, a line for each task, and where the settings are."""
    lines = [about.strip(), "", "Tasks, chosen with task=NAME:"]
    width = max(map(len, tasks)) + 4
    for name in tasks:
        about_task = textwrap.shorten(_first_clause(CONF / "task" / f"{name}.yaml"), 100, placeholder=" ...")
        lines.append(f"  {name}".ljust(width) + about_task)
    return "\n".join(
        [
            *lines,
            "",
            f"All settings with their values: python {entry}.py --cfg job, with task=NAME for the settings of a task.",
            "What each means: docs/configuration.md. Options of Hydra itself, such as -m: --hydra-help.",
        ]
    )


def _first_clause(path: Path) -> str:
    """Return the beginning of a config file's opening comment, up to the first full stop, colon or semicolon."""
    lines = path.read_text(encoding="utf-8").splitlines()
    opening = itertools.takewhile(lambda line: line.startswith("#"), lines)
    comment = " ".join(line.lstrip("# ") for line in opening if "@package" not in line)
    return re.split(r"[.:;](?=\s|$)", comment)[0]


def _require_task(arguments: list[str]) -> None:
    """Refuse a task, experiment or preset that belongs to the other entry, before anything is composed.

    Raises:
        UserError: Names the entry that has it, or the tasks of this one.
    """
    task = _chosen("task", arguments, "")
    if task in tasks or not task.isidentifier():
        return
    given = next(a for group in _CHOOSERS for a in arguments if a.startswith(f"{group}="))
    if (CONF / "task" / f"{task}.yaml").is_file():
        other = "train" if entry == "run" else "run"
        raise UserError(f"{given}: belongs to {other}.py; use python {other}.py {given}")
    raise UserError(f"task={task}: not a task of {entry}.py; use one of {', '.join(tasks)}")


def lap(*, count: bool) -> float:
    """Return the seconds of this command since a result last counted them, whatever they were spent on.

    Args:
        count: These seconds are now counted with a result; the next lap begins here.
    """
    global counted
    now = time.monotonic()
    seconds = now - counted
    if count:
        counted = now
    return seconds


def command() -> str:
    """Return the command line of this run, as it could be typed again."""
    return shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])


def finish(cfg: DictConfig, results: list[Any]) -> None:
    """Hand the results of all jobs of a sweep to its task."""
    name = tasks[cfg.task].finish
    if name is not None:
        _function(name)(cfg, results)


def direct(cfg: DictConfig, jobs: list[Any], compose: Callable[..., Any]) -> Generator[list[Any], list[Any], list[Any]]:
    """Run a sweep round by round: yield the jobs of each, take their results, return those that count."""
    task = tasks.get(cfg.task)
    if task is None or task.direct is None:
        return (yield jobs)
    return (yield from _function(task.direct)(cfg, jobs, compose))


def takes_sweeps(task: str) -> bool:
    """Tell whether a preset multiplies this task; task=analyze reads a sweep once, it does not run as one."""
    return task == "list" or entry == "train" or (task in tasks and tasks[task].finish is not None)


def _function(name: str) -> Callable[..., Any]:
    module, function = name.split(":")
    job: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return job


def typed(kind: type[T], values: Any, prefix: str = "") -> T:
    """Make a dataclass out of config values, checking names and types.

    Raises:
        UserError: A value of the wrong type, or a name the dataclass does not have.
    """
    plain = OmegaConf.to_container(OmegaConf.create(values) if isinstance(values, dict) else values, resolve=True)
    assert isinstance(plain, dict)
    try:
        made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), plain))
    except OmegaConfBaseException as error:
        key = str(error.full_key or error.key)
        wanted = {field.name: str(field.type) for field in fields(kind)}.get(key, "no such setting")  # type: ignore[arg-type]
        raise UserError(f"{prefix}{key}={plain.get(key)}: expected {_KINDS.get(wanted, wanted)}") from error
    assert isinstance(made, kind)
    return made


_KINDS = {
    "int": "a whole number",
    "int | None": "a whole number or null",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
}


def _number(kind: type, words: str) -> Callable[..., Any]:
    """Return an OmegaConf resolver that turns a dial into a number, so that 1 and 1.0 name one configuration."""

    def convert(value: Any, *, _node_: Any) -> Any:
        try:
            number = kind(value)
            if isinstance(value, bool) or number != float(value):
                raise ValueError
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{_node_._key()}={value}: expected {words}") from error
        return number

    return convert


OmegaConf.register_new_resolver("float", _number(float, "a number"), replace=True)
OmegaConf.register_new_resolver("int", _number(int, "a whole number"), replace=True)


def _with_environment(arguments: list[str]) -> list[str]:
    """Let MODEL_ID choose the model where the command line does not."""
    if os.environ.get("MODEL_ID") and not any(argument.startswith("model=") for argument in arguments):
        return [*arguments, "model=path"]
    return arguments


def _as_text(argument: str) -> str:
    """Keep Hydra from reading a question as its own grammar: commas, quotes, brackets and ${} belong to it."""
    key, sign, value = argument.partition("=")
    if key != "query" or not sign or (value[:1] in ("'", '"') and value[:1] == value[-1:] and len(value) > 1):
        return argument
    escaped = re.sub(r"\\+(?='|$)", lambda match: 2 * match[0], value).replace("'", "\\'").replace("${", "\\${")
    return f"query='{escaped}'"


def _refuse_additions(arguments: list[str]) -> None:
    """A setting that is added or removed is one that nobody reads or somebody misses."""
    for argument in arguments:
        if re.match(r"(\+|~)(?!hydra)", argument) and not argument.startswith("++hydra"):
            raise UserError(f"{argument}: settings cannot be added or removed; leave out the {argument[0]}")


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def explain(error: BaseException, arguments: list[str]) -> str | None:
    """Return what to tell the user, or None if this is a fault of the program."""
    chain = list(causes(error))
    for cause in chain:
        if isinstance(cause, UserError):
            return str(cause)
    text = "\n".join(str(cause) for cause in chain)
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_setting(match[1], arguments)
    if match := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        known = ", ".join(sorted(path.stem for path in (CONF / match[1]).glob("*.yaml")))
        return f"{match[1]}={match[2]}: unknown; use one of {known}"
    if isinstance(error, HydraException | OmegaConfBaseException):
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return "; ".join(lines) or type(error).__name__
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}; choose another folder with out=FOLDER, or mend this one"
    return None


def _unknown_setting(key: str, arguments: list[str]) -> str:
    """Say why a setting does not exist; a dial of another transform or source is named as such."""
    given = next((a for a in arguments if a.startswith(f"{key}=")), key)
    default = next((choice for group, choice in _included(CONF / f"{entry}.yaml") if group == "task"), "")
    task = _chosen("task", arguments, default)
    of_task = _settings_with(CONF / "task" / f"{task}.yaml")
    for group, default in sorted(_default_choices(task).items(), key=lambda item: item[0] not in of_task):
        owners = {path.stem: _settings_with(path) for path in sorted((CONF / group).glob("*.yaml"))}
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
        dials = ", ".join(name for name in owners.get(chosen, []) if name != "kat") or "none"
        return (
            f"{given}: {group}={chosen} has no such dial (its dials: {dials}); {key} belongs to "
            f"{' and '.join(f'{group}={name}' for name in having)}"
        )
    known = ", ".join(
        sorted({*_root_settings(CONF / f"{entry}.yaml"), *_root_settings(CONF / "task" / f"{task}.yaml")})
    )
    return f"{given}: no such setting; there are {known}, and the groups {', '.join(_groups())}"


_CHOOSERS = ("task", "experiment", "sweep")  # a task is chosen by the first of these that the command line has


def _chosen(group: str, arguments: list[str], default: str) -> str:
    """Return what the command line chooses of a group, or else its experiment, or else its preset."""
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    if group in given:
        return given[group]
    for chooser in _CHOOSERS[1:]:
        path = CONF / chooser / f"{given.get(chooser, '')}.yaml"
        for name, choice in _included(path) if path.is_file() else []:
            if name == group:
                return choice
    return default


def _default_choices(task: str) -> dict[str, str]:
    """Return the groups that have settings of their own at the root, and what this task chooses of each by default."""
    groups = ("embed_transform", "embed_source", "data", "task", "pairs", "embedder", "encoder", "loss")
    of_tasks = sorted((CONF / "task").glob("*.yaml"), key=lambda path: path.stem != task)
    files = [*of_tasks[:1], CONF / f"{entry}.yaml", *of_tasks[1:]]  # the first to choose counts: the task's own
    found = dict(reversed([chosen for path in files for chosen in _included(path)]))
    return {group: found[group] for group in groups if group in found}


def _settings_with(path: Path) -> list[str]:
    """Return the root settings and groups that come with a config file, those of the files that it includes too."""
    if not path.is_file():
        return []
    found = _root_settings(path)
    for group, choice in _included(path):
        found += [group, *_root_settings(CONF / group / f"{choice}.yaml")]
    return found


def _included(path: Path) -> list[tuple[str, str]]:
    """Return the groups that a config file includes and what it chooses of them; the first of several."""
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    entries = [entry for entry in config.get("defaults", []) if isinstance(entry, DictConfig)]
    chosen = [(str(group).removeprefix("override "), choice) for entry in entries for group, choice in entry.items()]
    return [(group.strip("/"), str(choice if isinstance(choice, str) else choice[0])) for group, choice in chosen]


def _root_settings(path: Path) -> list[str]:
    """Return the plain settings that a config file puts at the root."""
    node = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(node, dict)
    # a file of a group without this header puts nothing at the root
    if "@package _global_" not in path.read_text(encoding="utf-8") and path.parent != CONF:
        return []
    internal = {"defaults", "hydra", "task", "variant", "asked", "name", "group", "experiment"}
    return [str(key) for key, value in node.items() if key not in internal and not isinstance(value, dict)]


def _groups() -> list[str]:
    return sorted(path.name for path in CONF.iterdir() if path.is_dir())


def _leave_process_group() -> None:
    if "torch" not in sys.modules:
        return
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
