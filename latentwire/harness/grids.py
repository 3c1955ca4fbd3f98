"""Jobs of a sweep from the grids of a preset and a command line. Main entry: `expand()`."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from latentwire.harness.errors import UserError
from latentwire.harness.overrides import Grid, override_value
from latentwire.harness.progress import is_main_process, log


@dataclass
class Job:
    """One configuration of a sweep: its overrides and the composed config."""

    overrides: list[str]
    config: DictConfig


def variants(jobs: list[Job]) -> list[str]:
    """Return a suffix for each job that distinguishes jobs of equal names: '@seed1', or '' for a unique name.

    The suffix holds the overrides that vary among the jobs with this name.
    """
    settings = [dict(override.split("=", 1) for override in job.overrides) for job in jobs]
    same_name: dict[str, list[dict[str, str]]] = {}
    for job, setting in zip(jobs, settings, strict=True):
        same_name.setdefault(job.config.name, []).append(setting)
    return [
        "".join(
            "@" + re.sub(r"[^\w.+-]+", "_", f"{key}{value}")
            for key, value in setting.items()
            if len({other.get(key) for other in same_name[job.config.name]}) > 1
        )
        for job, setting in zip(jobs, settings, strict=True)
    ]


def repetitions(jobs: list[Job], repeats: object) -> list[list[str]]:
    """Return the overrides of each job for its further draws: 1, 2, ..., `repeats` - 1, with the suffix '@draw1'.

    Args:
        jobs: Jobs of draw 0.
        repeats: Number of draws.

    Raises:
        UserError: The number is not a whole number above 0, or the jobs set their draw themselves.
    """
    if not isinstance(repeats, int) or repeats < 1:
        raise UserError(f"repeats={repeats}: expected a whole number, at least 1")
    chosen = next((override for job in jobs for override in job.overrides if override.startswith("draw=")), None)
    if repeats > 1 and chosen is not None:
        raise UserError(f"{chosen}: repeats={repeats} numbers the draws itself; leave one of them out")
    return [
        [
            *(override for override in job.overrides if not override.startswith("variant=")),
            f"variant='{job.config.variant}@draw{number}'",
            f"draw={number}",
        ]
        for number in range(1, repeats)
        for job in jobs
    ]


def factors(sweep: DictConfig) -> list[list[Grid]]:
    """Return the two unions of grids of a preset. A sweep runs each combination of their points.

    The first union is `sources`. The second is `grids`, followed by `added`. A preset that
    inherits `grids` from another preset puts its own grids into `added`. The values of a grid may refer to settings.
    """
    plain = OmegaConf.to_container(sweep, resolve=True)
    assert isinstance(plain, dict)
    return [plain.get("sources", []), [*plain["grids"], *plain.get("added", [])]]


def expand(preset: list[list[Grid]], command_line: list[Override]) -> list[list[str]]:
    """Return the overrides of each job: the product of the command line's values and the preset's unions.

    The values of the command line vary slowest.

    Args:
        preset: Unions of grids, from `factors()`.
        command_line: Parsed overrides of the command line.

    Raises:
        UserError: The command line sets a setting that the preset varies, or sweeps a setting that cannot be swept.
    """
    chosen: dict[str, list[str]] = {}
    for override in command_line:
        key = override.get_key_element()
        if key == "only" and override.is_sweep_override():
            raise UserError(f"{override.input_line}: makes a grid of the patterns; put | between them, only='A|B'")
        if key in ("experiment", "sweep", "part", "repeats") and override.is_sweep_override():
            raise UserError(f"{override.input_line}: each is a sweep of its own; run one after the other")
        if not override.is_sweep_override():
            chosen[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            chosen[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise UserError(f"{override.input_line}: only lists, choices and ranges can be swept; write {key}=A,B,C")
    set_twice = sorted({key for union in preset for grid in union for key in grid} & chosen.keys())
    if set_twice:
        key = set_twice[0]
        raise UserError(
            f"{chosen[key][0]}: the sweep's own configurations set {key}; leave it out and choose among "
            "them with only='PATTERN', or leave out sweep=..."
        )
    unions = [[settings for grid in union or [{}] for settings in _product(grid)] for union in preset]
    return [
        [*outer, *itertools.chain.from_iterable(inner)]
        for outer in itertools.product(*chosen.values())
        for inner in itertools.product(*unions)
    ]


def _product(grid: Grid) -> list[list[str]]:
    """Return the overrides of each point of a grid: the product of its lists of values."""
    values = [value if isinstance(value, list) else [value] for value in grid.values()]
    return [
        [f"{key}={override_value(value)}" for key, value in zip(grid, point, strict=True)]
        for point in itertools.product(*values)
    ]


def select_jobs(jobs: list[Job], only: str | None) -> list[Job]:
    """Return the jobs with a name, with or without the source, that matches one of the patterns.

    Args:
        jobs: Jobs to select from.
        only: Shell patterns with | between them: 'baseline|anchor_*'. None selects all jobs.

    Raises:
        UserError: No job matches.
    """
    if only is None:
        return jobs
    patterns = [pattern.strip() for pattern in str(only).split("|")]
    selected = [job for job in jobs if any(fnmatchcase(name, p) for p in patterns for name in names_of(job))]
    if not selected:
        names = ", ".join(dict.fromkeys(names_of(job)[-1] for job in jobs))
        raise UserError(f"only={only!r}: matches none of the configurations; they are: {names}")
    return selected


def names_of(job: Job) -> list[str]:
    """Return the names that select a job: its name and, if it has one, its name without the source."""
    return [str(job.config[key]) for key in ("name", "experiment") if key in job.config]


def print_jobs(jobs: list[Job]) -> None:
    """Print the name and the overrides of each job."""
    if not is_main_process():
        return
    log(f"{len(jobs)} configurations")
    width = max(len(job.config.name) for job in jobs)
    for job in jobs:
        overrides = [o for o in job.overrides if not o.startswith(("sweep=", "task=", "only=", "variant="))]
        print(f"{job.config.name:<{width}}  {' '.join(overrides)}")
