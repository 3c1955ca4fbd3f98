"""The examples, shots and random numbers that an evaluation draws."""

from __future__ import annotations

from dataclasses import replace

import pytest
from accelerate import PartialState

from latentwire.data.examples import HALVES, Dataset, Example, draw_examples, half_of
from latentwire.evaluation.evaluate import evaluate
from latentwire.evaluation.setup import Component, Settings, prepare_with
from latentwire.harness.errors import UserError
from latentwire.lm.models import LanguageModel

STATE = PartialState(cpu=True)
SETTINGS = Settings(
    samples=3, seed=0, shots=2, questions_per_shot=1, max_new_tokens=2, batch_tokens=2000, dtype="float32"
)
ONE_FILE = [
    Example(f"{p}-{q}", f"Number {p} is in town.", f"Question {q}?", (f"Number {p}",))
    for p in range(9)
    for q in range(3)
]


def measured(tiny: LanguageModel, data: Dataset, settings: Settings, source: str = "text"):
    setup = prepare_with(tiny, data, settings)
    return evaluate(setup, Component(source, {}), Component("baseline"), STATE, "")


def test_later_settings_leave_hashes_at_their_defaults():
    assert SETTINGS.identity() == {
        "samples": 3, "seed": 0, "shots": 2, "questions_per_shot": 1, "max_new_tokens": 2, "batch_tokens": 2000,
        "dtype": "float32",
    }  # fmt: skip
    assert replace(SETTINGS, shots_seed=0).identity() == SETTINGS.identity()
    assert replace(SETTINGS, seed=4, shots_seed=0).identity() == {**SETTINGS.identity(), "seed": 4, "shots_seed": 0}
    assert replace(SETTINGS, part="select").identity() == {**SETTINGS.identity(), "part": "select"}


@pytest.mark.parametrize(
    ("change", "message"),
    [({"part": "half"}, "part=half: use one of all, select, confirm"), ({"shots_seed": -1}, "shots_seed=-1: must be")],
)
def test_settings_of_the_draw_are_checked(change, message):
    with pytest.raises(UserError, match=message):
        replace(SETTINGS, **change).check()


@pytest.mark.parametrize("half", HALVES)
def test_a_half_is_evaluated_alone(tiny, half):
    data = Dataset(ONE_FILE, ONE_FILE)
    found, rows = measured(tiny, data, replace(SETTINGS, part=half))
    contexts = {example.id: example.context for example in ONE_FILE}
    assert {half_of(contexts[row["id"]]) for row in rows} == {half}
    assert found["available"] == len(draw_examples(data, 2, 1, 0, part=half)[1])


@pytest.mark.parametrize(("shots", "expected"), [(0, 27), (2, 21), (5, 12)])
def test_a_result_counts_the_available_examples(tiny, shots, expected):
    """Three questions about each of nine passages, but for those of the shots; `samples` does not matter."""
    for samples in (1, 3):
        settings = replace(SETTINGS, shots=shots, samples=samples)
        found, _ = measured(tiny, Dataset(ONE_FILE, ONE_FILE), settings)
        assert (found["available"], found["num_samples"]) == (expected, samples)
