"""The number of steps that fit into a time, with a clock that only the measured work moves."""

from __future__ import annotations

import json

import pytest
from accelerate import PartialState

from latentwire.harness.errors import UserError
from latentwire.latent_training import duration
from latentwire.latent_training.duration import MARGIN, steps_within
from latentwire.latent_training.step_plan import TrainingStep

SECONDS = {"reconstruction": 2.0, "answers": 4.0}
EVALUATION = 30.0
PLAN = [
    TrainingStep(1 + n // 50, "reconstruction" if n < 40 else "answers", (n,), n in (49, 99)) for n in range(100)
]  # 2 epochs, 40 steps of the first kind and 60 of the second
WHOLE = MARGIN * (40 * 2.0 + 60 * 4.0) + 2 * EVALUATION


class Clock:
    """A clock that work moves; the first step of each kind takes ten times as long."""

    def __init__(self) -> None:
        self.now, self.seen = 0.0, []

    def perf_counter(self) -> float:
        return self.now

    def step(self, step: TrainingStep) -> None:
        self.now += SECONDS[step.kind] * (1 if step.kind in self.seen else 10)
        self.seen.append(step.kind)

    def evaluate(self) -> None:
        self.now += EVALUATION


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(duration, "time", clock)
    return clock


def within(clock: Clock, minutes: float, path) -> int:
    return steps_within(minutes, PLAN, clock.step, clock.evaluate, path, PartialState())


def test_half_the_time_of_all_steps_gives_half_the_steps(clock, tmp_path):
    assert within(clock, WHOLE / 2 / 60 + 0.001, tmp_path / "plan.json") == 50
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["seconds"] == {**SECONDS, "evaluation": EVALUATION}  # the slow first step does not count
    assert written["steps"] == 50


def test_the_number_is_measured_once(clock, tmp_path):
    first = within(clock, 3, tmp_path / "plan.json")
    steps = len(clock.seen)
    assert within(clock, 99, tmp_path / "plan.json") == first
    assert len(clock.seen) == steps


def test_there_are_no_more_steps_than_epochs_have(clock, tmp_path):
    assert within(clock, 1000, tmp_path / "plan.json") == len(PLAN)


def test_a_time_without_room_for_a_step_is_refused(clock, tmp_path):
    with pytest.raises(UserError, match=r"^minutes=0\.001: a step takes 3\.5 s, so not one fits"):
        within(clock, 0.001, tmp_path / "plan.json")
    assert not (tmp_path / "plan.json").exists()


def test_a_damaged_plan_is_named(clock, tmp_path):
    (tmp_path / "plan.json").write_text('{"minutes": 1}')
    with pytest.raises(UserError, match=r"plan\.json.*delete it to measure anew"):
        within(clock, 1, tmp_path / "plan.json")
