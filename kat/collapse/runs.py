"""Runs of GRPO in a folder: which arm and seed each is, and whether it finished. Main entry: `find_runs()`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from kat.collapse.records import RunState, RunStatus
from latentwire.harness.errors import UserError
from latentwire.harness.results import DamagedResultError, JsonObject, numbered_rows, read_json
from latentwire.records import required_fields

BASELINE = "uniform"
AGAIN = "uniform_again"  # the baseline once more, with the same seed and other random numbers of sampling
CONTROLS = ("entropy", "novelty")  # arms that are known to raise diversity
OWN_SETTINGS = (
    "entropy_coef",
    "reward_funcs",
    "reward_weights",
    "reward_settings",
    "sampling_stream",
)  # of grpo; an arm may differ in them
FAILED = "failed.json"  # in the folder of a run that failed: the error
REMEDY = "move the folder away and run the experiment again"
R = TypeVar("R")


@dataclass(frozen=True)
class FoundRun:
    """A run of GRPO: its folder, what it is, and how far it came."""

    folder: Path
    arm: str
    seed: int
    config: JsonObject
    status: RunStatus
    reason: str

    def state(self) -> RunState:
        """Return the run as a record."""
        return {
            "arm": self.arm,
            "seed": self.seed,
            "status": self.status,
            "folder": str(self.folder),
            "reason": self.reason,
        }


def find_runs(folder: Path) -> list[FoundRun]:
    """Return the runs of GRPO below a folder, in the order of their paths.

    Raises:
        UserError: The folder does not exist or has no run of GRPO, or two finished runs have the same arm and seed.
        DamagedResultError: A config.json cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"folder={folder}: no such folder; give the folder with the runs of an experiment")
    found = [_described(path, config) for path, config in _grpo_folders(folder)]
    if not found:
        raise UserError(f"folder={folder}: has no run of GRPO; train with python train.py out={folder}/NAME")
    seen: dict[tuple[str, int], Path] = {}
    for run in found:
        if run.status == "finished" and (other := seen.setdefault((run.arm, run.seed), run.folder)) != run.folder:
            raise UserError(f"folder={folder}: {other} and {run.folder} both are arm {run.arm}, seed {run.seed}; move "
                            "one of them away")  # fmt: skip
    return found


def _grpo_folders(folder: Path) -> Iterator[tuple[Path, JsonObject]]:
    """Yield the folders of runs with their configs. Folders inside a run, and replaced runs, are not searched."""
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else None
    if config is None and (folder / FAILED).is_file():  # it failed before it began
        failure = read_json(folder / FAILED)
        config = {"task": "grpo", **failure} if isinstance(failure, dict) else None
    if isinstance(config, dict) and config.get("task") == "grpo":
        yield folder, config
        return
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and path.name != "replaced"):
        yield from _grpo_folders(inner)


def _described(folder: Path, config: JsonObject) -> FoundRun:
    seed = config.get("seed")
    if not isinstance(seed, int):
        raise DamagedResultError(f"{folder / 'config.json'} lacks a seed: {REMEDY}")
    status, reason = _status(folder)
    return FoundRun(folder, arm_in(config), seed, config, status, reason)


def _status(folder: Path) -> tuple[RunStatus, str]:
    path = folder / "result.json"
    try:
        if path.is_file():
            read_json(path)
            return "finished", ""
        if (folder / FAILED).is_file():
            return "failed", error_of(folder)
    except DamagedResultError as error:
        return "damaged", str(error)
    return "unfinished", "has no result.json"


def error_of(folder: Path) -> str:
    """Return the error of a run that failed."""
    failure = read_json(folder / FAILED)
    return str(failure["error"] if isinstance(failure, dict) else failure)


def arm_in(config: JsonObject) -> str:
    """Return the arm of a run from its config.

    A field `arm` names it. Without one, an entropy bonus is the arm entropy and a novelty reward the arm novelty, and
    every other run is named after its sampler.
    """
    if isinstance(arm := config.get("arm"), str):
        return arm
    sampler = str(node(config, "sampler").get("name"))
    grpo = node(config, "grpo")
    coefficient, functions = grpo.get("entropy_coef"), grpo.get("reward_funcs")
    raised = []
    if isinstance(coefficient, int | float) and coefficient > 0:
        raised.append(CONTROLS[0])
    if isinstance(functions, list) and any(str(name).rpartition(":")[2] == CONTROLS[1] for name in functions):
        raised.append(CONTROLS[1])
    return "+".join([*([] if sampler == BASELINE and raised else [sampler]), *raised])


def node(config: JsonObject, name: str) -> JsonObject:
    """Return a group of a config, empty if it is missing."""
    value = config.get(name)
    return cast(JsonObject, value) if isinstance(value, dict) else {}


def require_same_training(runs: Sequence[FoundRun]) -> None:
    """Check that runs differ only in what their arms differ in.

    Raises:
        UserError: A setting of the training differs. The message names it and both runs.
    """
    first, *others = runs
    known = training_settings(first.config)
    for run in others:
        own = training_settings(run.config)
        for key in sorted({*known, *own}):
            if known.get(key) != own.get(key):
                raise UserError(
                    f"folder: {first.folder} has {key}={known.get(key)} and {run.folder} {key}={own.get(key)}, so "
                    "their arms cannot be compared; train them with the same settings, or move one away"
                )


def training_settings(config: JsonObject) -> JsonObject:
    """Return the settings that all arms must share."""
    found: JsonObject = {name: config.get(name) for name in ("steps", "held_out")}
    for group in ("grpo", "optimizer", "tuning"):
        own = OWN_SETTINGS if group == "grpo" else ()
        found |= {f"{group}.{name}": value for name, value in node(config, group).items() if name not in own}
    return found


def missing_runs(runs: Sequence[FoundRun], control_seeds: Sequence[int]) -> list[RunState]:
    """Return the combinations of an arm and a seed that no folder has. Control seeds need only the baseline."""
    known = {(run.arm, run.seed) for run in runs}
    arms = sorted({run.arm for run in runs if run.arm != AGAIN})
    seeds = sorted({run.seed for run in runs} - set(control_seeds))
    wanted = [(arm, seed) for arm in arms for seed in seeds] + [(BASELINE, seed) for seed in control_seeds]
    return [
        {"arm": arm, "seed": seed, "status": "missing", "folder": None, "reason": "has no folder"}
        for arm, seed in wanted
        if (arm, seed) not in known
    ]


def typed_rows(kind: type[R], path: Path) -> Iterator[R]:
    """Yield the rows of a JSONL file of a run.

    Args:
        kind: TypedDict of a row.
        path: The file.

    Raises:
        DamagedResultError: The file is missing, or a row cannot be read or lacks a field.
    """
    if not path.is_file():
        raise DamagedResultError(f"{path} is missing: {REMEDY}")
    needed = required_fields(kind)
    for number, row in numbered_rows(path, REMEDY):
        if lacking := needed - row.keys():
            raise DamagedResultError(f"{path}, line {number}, lacks {', '.join(sorted(lacking))}: {REMEDY}")
        yield cast(R, row)
