"""The examples, shots and random numbers that an evaluation draws."""

from __future__ import annotations

from dataclasses import replace

import pytest
from accelerate import PartialState

from latentwire.data.examples import Dataset, Example
from latentwire.evaluation.evaluate import evaluate
from latentwire.evaluation.setup import Component, Settings, prepare_with
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


@pytest.mark.parametrize(("shots", "expected"), [(0, 27), (2, 21), (5, 12)])
def test_a_result_counts_the_available_examples(tiny, shots, expected):
    """Three questions about each of nine passages, but for those of the shots; `samples` does not matter."""
    for samples in (1, 3):
        settings = replace(SETTINGS, shots=shots, samples=samples)
        found, _ = measured(tiny, Dataset(ONE_FILE, ONE_FILE), settings)
        assert (found["available"], found["num_samples"]) == (expected, samples)
