"""Checks of an experiment before its first run, and what is fixed then. Main entry: `fix_experiment()`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from omegaconf import DictConfig

from kat.collapse.measures import MEASURES, SIMILARITY, text_measures
from kat.collapse.runs import BASELINE, training_settings
from kat.collapse.settings import AUTO, EXPERIMENT, CollapseSpec, recorded_in
from kat.grpo.reward_calls import calls_of
from kat.grpo.reward_sum import factors_of
from kat.grpo.settings import GrpoSettings
from latentwire.harness.device import accelerator_state
from latentwire.harness.errors import UserError
from latentwire.harness.grids import Job
from latentwire.harness.overrides import override_value
from latentwire.harness.ownership import owned
from latentwire.harness.progress import is_main_process
from latentwire.harness.results import FORMAT, JsonObject, write_json
from latentwire.harness.typed_config import plain_values, typed
from latentwire.harness.worker_counts import own_workers

RECIPE = "python train.py -m experiment=mode_collapse"


def experiment_folder(cfg: DictConfig) -> Path:
    """Return the folder of all runs."""
    return Path(str(cfg.experiment_folder)).expanduser()


def verdict_command(cfg: DictConfig) -> str:
    """Return the command that gives the verdict again."""
    return f"python run.py task=verdict folder={cfg.experiment_folder}"


def fix_experiment(cfg: DictConfig, jobs: Sequence[Job], command: str) -> None:
    """Check all settings before anything is trained, and record what is fixed then.

    Args:
        cfg: Config of the sweep.
        jobs: One job for each arm and seed.
        command: The command line, for the record.

    Raises:
        UserError: A setting is out of range, the runs cannot give a verdict, or a setting differs from the record.
    """
    spec = typed(CollapseSpec, cfg.collapse, "collapse.")
    if experiment_folder(cfg).is_file():
        raise UserError(f"experiment_folder={cfg.experiment_folder}: is a file; choose a folder")
    _require_measure(spec.measure)
    seeds = _compared_seeds(jobs, spec)
    if cfg.only is None:
        _require_comparison(seeds, spec.arm)
    _require_distinct(jobs)
    for one in {str(job.config.arm): job.config for job in jobs}.values():
        settings = GrpoSettings.of(one).spec
        calls = calls_of(settings.reward_funcs, settings.reward_settings)
        factors_of(calls, settings.reward_funcs, settings.reward_weights)
    planned = len(set().union(*seeds.values())) if seeds else 0
    with owned(experiment_folder(cfg), EXPERIMENT, accelerator_state(cfg.device)):
        _record(cfg, spec, training_settings(plain_values(jobs[0].config)), None if cfg.only else planned, command)


def count_workers(cfg: DictConfig, runs: int) -> int:
    """Return the number of processes. auto: one for each thread on a CPU, and one on another device; null: 1.

    Args:
        cfg: Config of the sweep.
        runs: Number of runs that they share.

    Raises:
        UserError: The number is not a whole number above 0, torchrun has started several processes, or force is set.
    """
    state = accelerator_state(cfg.device)
    if state.num_processes > 1:
        raise UserError("task=mode_collapse: torchrun would share each run, and runs are small; start the command "
                        "without it, with workers=N")  # fmt: skip
    if cfg.force:
        raise UserError(f"force=true: move {cfg.experiment_folder} away to train its runs again")
    if cfg.workers == "auto":
        return min(runs, torch.get_num_threads()) if state.device.type == "cpu" else 1
    return own_workers(cfg)


def _require_measure(name: str) -> None:
    usable = [each for each, one in {**MEASURES, **text_measures()}.items() if one.direction and each != SIMILARITY]
    if name not in (AUTO, *usable):
        raise UserError(f"collapse.measure={name}: must be {AUTO} or a measure with a direction: {', '.join(usable)}")


def _compared_seeds(jobs: Sequence[Job], spec: CollapseSpec) -> dict[str, set[int]]:
    """Return the seeds of each arm that are compared."""
    found: dict[str, set[int]] = {}
    for one in jobs:
        if one.config.seed not in spec.control_seeds:
            found.setdefault(str(one.config.arm), set()).add(int(one.config.seed))
    return found


def _require_comparison(seeds: dict[str, set[int]], arm: str) -> None:
    if lacking := next((name for name in (BASELINE, arm) if name not in seeds), None):
        raise UserError(
            f"collapse.arm={arm}: this experiment has no runs of {lacking} (its arms: {', '.join(seeds) or 'none'}); "
            f"choose another arm, or begin with {RECIPE}"
        )
    if (both := len(seeds[BASELINE] & seeds[arm])) < 2:
        raise UserError(f"seeds: {both} compared seeds have runs of both {BASELINE} and {arm}, and an interval over "
                        "seeds needs 2 or more; raise seeds")  # fmt: skip


def _require_distinct(jobs: Sequence[Job]) -> None:
    """Check that no two runs have one folder, and no two seeds one planted world.

    Raises:
        UserError: They have.
    """
    names = [str(one.config.out) for one in jobs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{twice}: two runs have this folder; keep collapse.control_seeds apart from the compared "
                        "seeds, and leave out and name as they are")  # fmt: skip
    worlds: dict[str, int] = {}
    for one in jobs:
        seed = int(one.config.seed)
        if one.config.world is not None and (other := worlds.setdefault(str(one.config.world), seed)) != seed:
            raise UserError(f"world={one.config.world}: the seeds {other} and {seed} would share it, so they would not "
                            "be replications; put ${seed} into its path")  # fmt: skip


def _record(cfg: DictConfig, spec: CollapseSpec, training: JsonObject, seeds: int | None, command: str) -> None:
    """Write what is fixed before the runs, or check that it is what was written before the first run.

    Args:
        cfg: Config of the sweep.
        spec: What decides.
        training: What all arms share.
        seeds: Number of compared seeds of this command; None for a part of the runs.
        command: The command line.

    Raises:
        UserError: A setting differs.
    """
    folder = experiment_folder(cfg)
    known = recorded_in(folder)
    if known is None:
        known = {"format": FORMAT, "command": command, "collapse": dict(vars(spec)), "training": training, "seeds": []}
    for group, settings in (("collapse", dict(vars(spec))), ("training", training)):
        recorded = cast(JsonObject, known[group])
        if changed := next((name for name in recorded if settings.get(name) != recorded[name]), None):
            name = f"collapse.{changed}" if group == "collapse" else changed
            given = f"{name}={override_value(settings.get(changed))}"
            another = f"{verdict_command(cfg)} {shlex.quote(given)}" if group == "collapse" else ""
            raise UserError(
                f"{given}: {folder} was begun with {override_value(recorded[changed])}, and what decides and what all "
                "runs share is fixed before the runs; leave it out, or give another experiment_folder=FOLDER"
                + (f". Another verdict on these runs: {another}" if another else "")
            )
    planned = cast(list[int], known["seeds"])
    if seeds is not None and seeds not in planned[-1:]:
        planned = [*planned, seeds]
    if is_main_process():
        write_json(folder / EXPERIMENT, {**known, "seeds": planned})
