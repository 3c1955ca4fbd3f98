"""The number of steps that fit into a given time. Main entry: `steps_within()`.

The steps of a run decide its learning rates and its phases, so their number must be known before the first one. A few
steps of each kind are timed at the start, without an update. The number goes into plan.json, so that a killed run goes
on with the same plan.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TypedDict

from accelerate import PartialState

from latentwire.harness.errors import UserError
from latentwire.harness.gather import broadcast_from_main
from latentwire.harness.progress import log
from latentwire.harness.results import read_json, write_json
from latentwire.latent_training.step_plan import TrainingStep
from latentwire.records import checked

TIMED = 6  # steps of each kind that are timed; the median leaves out the slow first one
MARGIN = 1.1  # seconds of a step with its update and its share of the checkpoints, per second without them


class StepCount(TypedDict):
    """Content of plan.json."""

    minutes: float
    seconds: dict[str, float]  # of one step of each kind, and of one evaluation
    steps: int


def steps_within(
    minutes: float,
    plan: Sequence[TrainingStep],
    run_step: Callable[[TrainingStep], None],
    evaluate: Callable[[], object],
    path: Path,
    state: PartialState,
) -> int:
    """Return how many steps fit into a time; the kinds keep the shares that they have in the whole plan.

    Args:
        minutes: Minutes of training, with its evaluations.
        plan: Steps of all epochs.
        run_step: Does a step without an update.
        evaluate: Evaluates the held-out passages.
        path: File for the number. If it exists, nothing is measured.
        state: The processes. The main one decides.

    Returns:
        A number from 1 to the length of the plan.

    Raises:
        UserError: Not a single step fits into the time, or the file is damaged.
    """
    if path.is_file():
        return checked(StepCount, read_json(path), path, "delete it to measure anew")["steps"]
    kinds = sorted({step.kind for step in plan})
    seconds = {kind: _seconds_of(run_step, [step for step in plan if step.kind == kind][:TIMED]) for kind in kinds}
    seconds["evaluation"] = _timed(evaluate)
    training = sum(MARGIN * seconds[step.kind] for step in plan)
    whole = training + seconds["evaluation"] * sum(step.last_of_epoch for step in plan)
    steps = min(len(plan), int(len(plan) * 60 * minutes / whole))
    if steps < 1:
        raise UserError(
            f"minutes={minutes}: a step takes {training / len(plan):.1f} s, so not one fits; give more minutes, or "
            "lower passages_per_step"
        )
    own: StepCount = {"minutes": minutes, "seconds": seconds, "steps": steps}
    found = broadcast_from_main(state, own)
    if state.is_main_process:
        write_json(path, found)
        log(
            f"minutes={minutes}: {found['steps']} of {len(plan)} steps fit; max_steps={found['steps']} repeats this run"
        )
    return found["steps"]


def _seconds_of(run_step: Callable[[TrainingStep], None], steps: Sequence[TrainingStep]) -> float:
    return median(_timed(lambda step=step: run_step(step)) for step in steps)  # type: ignore[misc]


def _timed(work: Callable[[], object]) -> float:
    """Return the seconds of a piece of work."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
