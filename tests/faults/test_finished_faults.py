"""Faults that show in the finished results of a sweep: each is planted, and must be found with its cause."""

from __future__ import annotations

import pytest

from tests.faults.answer_faults import PLANTED
from tests.helpers.finished_sweeps import sound_sweep


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_found_with_its_cause(plant):
    made = sound_sweep()
    expected = plant(made)
    found = made.warnings()
    assert {name: found.get(name, set()) & kinds for name, kinds in expected.items()} == expected
    # Nothing else is accused, apart from results that the same fault makes wrong in another way.
    assert set(found) == set(expected)


@pytest.mark.slow
def test_sound_sweeps_give_no_warning():
    """Ten sweeps of five sources, with 14 configurations each."""
    for seed in range(10):
        assert sound_sweep(seed).warnings() == {}
    assert sound_sweep(0, count=8).warnings() == {}
