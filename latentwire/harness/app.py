"""Run the task of a command line and turn errors into messages. Main entry: `launch()`."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import DictConfig

from latentwire.harness import processes, typed_config  # noqa: F401 (typed_config registers resolvers)
from latentwire.harness.config_errors import explain, refuse_additions, refuse_renamed, require_task
from latentwire.harness.config_files import choices
from latentwire.harness.help import help_text
from latentwire.harness.paths import CONF
from latentwire.harness.plugins import load_plugins, named_plugins, require_choices
from latentwire.harness.progress import is_main_process, rank
from latentwire.harness.session import Session, Task
from latentwire.harness.worker_counts import require_launcher


def launch(
    config_name: str, known_tasks: dict[str, Task], arguments: list[str] | None = None, about: str | None = None
) -> None:
    """Run the task of the command line. Exit with status 1 and a message if the user can fix the error.

    Args:
        config_name: Root of the config tree, `run` or `train`.
        known_tasks: Tasks of this entry, by name.
        arguments: Command line without the program's name. Default: `sys.argv`.
        about: Text that --help prints before the tasks: purpose of this entry and example commands.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(help_text(config_name, known_tasks, about or ""))
        return
    sys.argv = [sys.argv[0], *map(_quote_query, _with_environment(arguments))]
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises errors instead of printing them
    try:
        processes.start_all_processes(arguments)
        refuse_additions(arguments)
        refuse_renamed(arguments)
        require_task(arguments, config_name, known_tasks)
        load_plugins(named_plugins(arguments))
        job = JobFunction(Session(config_name, dict(known_tasks), command_line()))
        _prefer_own_launchers()
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
    except (Exception, _StoppedError) as raised:
        error = raised.error if isinstance(raised, _StoppedError) else raised
        message = explain(error, arguments, config_name)
        if message is None or wants_traceback:
            raise error from None
        print(f"error: {message}" if is_main_process() else f"error in process {rank()}: {message}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        if is_main_process():
            print("interrupted; run the same command again to finish the rest", file=sys.stderr)
        sys.exit(130)
    finally:
        _leave_process_group()


def command_line() -> str:
    """Return the command line of this run, quoted so that it can be typed again."""
    program, here = Path(sys.argv[0]).resolve(), Path.cwd()
    shown = str(program.relative_to(here)) if program.is_relative_to(here) else program.name
    return shlex.join(["python", shown, *sys.argv[1:]])


def _prefer_own_launchers() -> None:
    """Drop the config of a launcher's package if conf/ has one of its name: Hydra would take it for a schema."""
    Plugins.instance()  # imports the packages, which register their configs
    registered = ConfigStore.instance().repo["hydra"]["launcher"]
    for name in choices("hydra/launcher"):
        registered.pop(f"{name}.yaml", None)


class _StoppedError(BaseException):
    """Carries a task's exception past Hydra, which would otherwise print its own messages first."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def compose_config(entry: str, overrides: Sequence[str]) -> DictConfig:
    """Return the config of one job, with the plugins that it names, for a task's function in any process.

    Args:
        entry: Root of the config tree, `run` or `train`.
        overrides: Command line without the program's name: ["embed_transform=anchor_offset", "eps=0.1"].

    Raises:
        UserError: A plugin cannot be imported.
    """
    load_plugins(named_plugins(overrides))
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(entry, overrides=list(overrides))


class JobFunction:
    """The function that Hydra calls with the config of each job, in this process or in a launcher's worker.

    Args:
        session: What the jobs of this command share. The sweeper takes it from here.
    """

    def __init__(self, session: Session) -> None:
        self.session = session

    def __call__(self, cfg: DictConfig) -> object:
        """Run the task of a config and return its result."""
        try:
            require_choices(cfg)
            if not self.session.sweeping:
                require_launcher(cfg, takes_workers=self.session.task(cfg).takes_workers)
            return self.session.run(cfg)
        except Exception as error:
            if self.session.remote:
                raise  # the launcher carries it to the process of the sweep
            raise _StoppedError(error) from error


def _with_environment(arguments: list[str]) -> list[str]:
    """Add `model=path` if MODEL_ID is set and the command line does not choose a model."""
    if os.environ.get("MODEL_ID") and not any(argument.startswith("model=") for argument in arguments):
        return [*arguments, "model=path"]
    return arguments


def _quote_query(argument: str) -> str:
    """Quote the text of `query=...`: Hydra would parse its commas, quotes, brackets and ${} as grammar."""
    key, sign, value = argument.partition("=")
    if key != "query" or not sign or (value[:1] in ("'", '"') and value[:1] == value[-1:] and len(value) > 1):
        return argument
    escaped = re.sub(r"\\+(?='|$)", lambda match: 2 * match[0], value).replace("'", "\\'").replace("${", "\\${")
    return f"query='{escaped}'"


def _leave_process_group() -> None:
    if "torch" not in sys.modules:
        return
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
