"""What both entries call: runs the job of `cfg.task` and turns errors into messages. Main entry: `launch()`."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

import hydra
from omegaconf import DictConfig

from latentwire.harness import processes, program, typed_config  # noqa: F401 (typed_config registers resolvers)
from latentwire.harness.config_errors import explain, refuse_additions, refuse_renamed, require_task
from latentwire.harness.errors import UserError
from latentwire.harness.help import help_text
from latentwire.harness.paths import CONF
from latentwire.harness.program import Program, Task, load_function
from latentwire.harness.progress import is_main_process, rank


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
    program.current = Program(config_name, dict(known_tasks))
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(help_text(config_name, known_tasks, about or ""))
        return
    sys.argv = [sys.argv[0], *map(_as_text, _with_environment(arguments))]
    asked_for_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing; what is said is decided below
    try:
        processes.hand_over(arguments)
        refuse_additions(arguments)
        refuse_renamed(arguments)
        require_task(arguments, config_name, known_tasks)
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(_run)()
    except (Exception, _StoppedError) as raised:
        error = raised.error if isinstance(raised, _StoppedError) else raised
        message = explain(error, arguments, config_name)
        if message is None or asked_for_traceback:
            raise error from None
        print(f"error: {message}" if is_main_process() else f"error in process {rank()}: {message}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        if is_main_process():
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
    tasks, entry = program.current.tasks, program.current.entry
    try:
        if cfg.task not in tasks:
            raise UserError(f"task={cfg.task}: not a task of {entry}.py; use one of {', '.join(tasks)}")
        return load_function(tasks[cfg.task].run)(cfg)
    except Exception as error:
        raise _StoppedError(error) from error


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


def _leave_process_group() -> None:
    if "torch" not in sys.modules:
        return
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
