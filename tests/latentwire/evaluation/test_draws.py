"""The examples, shots and random numbers that an evaluation draws."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from accelerate import PartialState

from latentwire.data.examples import HALVES, Dataset, Example, draw_examples, half_of
from latentwire.data.prompts import PromptWriter
from latentwire.evaluation.evaluate import evaluate
from latentwire.evaluation.inputs import RepairedInputs
from latentwire.evaluation.setup import Component, Settings, prepare_with
from latentwire.harness.errors import UserError
from latentwire.harness.random import generator_for
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
    assert replace(SETTINGS, draw=1).identity() == {**SETTINGS.identity(), "draw": 1}
    assert replace(SETTINGS, part="select").identity() == {**SETTINGS.identity(), "part": "select"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"part": "half"}, "part=half: use one of all, select, confirm"),
        ({"shots_seed": -1}, "shots_seed=-1: must be"),
        ({"draw": -1}, "draw=-1: must be at least 0"),
    ],
)
def test_settings_of_the_draw_are_checked(change, message):
    with pytest.raises(UserError, match=message):
        replace(SETTINGS, **change).check()


def test_the_first_draw_is_the_one_without_draws():
    settings = replace(SETTINGS, seed=3)
    assert settings.generator("noisy", "q1").initial_seed() == generator_for(3, "noisy", "q1").initial_seed()
    assert (settings.seed_of_shots(), settings.seed_of_codes()) == (3, 3)
    assert replace(settings, shots_seed=7).seed_of_shots() == 7


def test_each_draw_has_numbers_of_its_own():
    several = [replace(SETTINGS, draw=draw) for draw in range(4)]
    assert len({settings.generator("noisy", "q1").initial_seed() for settings in several}) == 4
    assert len({settings.seed_of_shots() for settings in several}) == 4
    assert len({settings.seed_of_codes() for settings in several}) == 4
    other = replace(several[1], shots_seed=7)
    assert other.seed_of_shots() != several[1].seed_of_shots()
    assert other.generator("noisy").initial_seed() == several[1].generator("noisy").initial_seed()


def test_another_draw_has_other_shots_and_the_same_examples(tiny, monkeypatch):
    shown, write = [], PromptWriter.shot_pieces
    monkeypatch.setattr(PromptWriter, "shot_pieces", lambda self, shots: shown.append(shots) or write(self, shots))
    data = Dataset([replace(example, context=f"{example.context} Shown.") for example in ONE_FILE], ONE_FILE)
    first, other = (prepare_with(tiny, data, replace(SETTINGS, draw=draw)) for draw in (0, 1))
    ids = [[prompt.example.id for prompt in setup.prompts] for setup in (first, other)]
    assert ids[0] == ids[1]
    assert shown[0] == draw_examples(data, 2, 1, seed=0)[0]
    assert shown[0] != shown[1]


@pytest.mark.parametrize(("source", "transform"), [("rotated", "baseline"), ("text", "random_interpolation")])
def test_another_draw_has_other_sources_and_transforms(tiny, source, transform):
    data = Dataset(ONE_FILE, ONE_FILE)
    dials = {"k": 3} if transform == "random_interpolation" else {}
    spans = []
    for draw in (0, 1, 1):
        setup = prepare_with(tiny, data, replace(SETTINGS, shots=0, draw=draw))
        inputs = RepairedInputs(setup, Component(source), Component(transform, dials))
        spans.append(inputs.embed(setup.prompts[0])[0])
    assert torch.equal(spans[1], spans[2]) and not torch.equal(spans[0], spans[1])


@pytest.mark.parametrize("half", HALVES)
def test_a_half_is_evaluated_alone(tiny, half):
    data = Dataset(ONE_FILE, ONE_FILE)
    found, rows = measured(tiny, data, replace(SETTINGS, part=half))
    contexts = {example.id: example.context for example in ONE_FILE}
    assert {half_of(contexts[row["id"]]) for row in rows} == {half}
    assert found["available"] == len(draw_examples(data, 2, 1, 0, part=half)[1])


@pytest.mark.parametrize(("shots", "expected"), [(0, 27), (2, 21), (5, 12)])
def test_a_result_counts_the_available_examples(tiny, shots, expected):
    """Three questions about each of nine passages, but for the passages of the shots; `samples` does not matter."""
    for samples in (1, 3):
        settings = replace(SETTINGS, shots=shots, samples=samples)
        found, _ = measured(tiny, Dataset(ONE_FILE, ONE_FILE), settings)
        assert (found["available"], found["num_samples"]) == (expected, samples)
