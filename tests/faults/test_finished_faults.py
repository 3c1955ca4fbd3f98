"""Faults that show in the finished results of a sweep: each is planted, and must be found with its cause."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.helpers.finished_sweeps import MadeSweep, sound_sweep

Found = dict[str, set[str]]  # kinds of the warnings that a fault must give, by name of the result
REPAIRED = "rms_matching_target_scale1.0@scaled"  # reads its inputs: they are near
BROKEN = "nearest_k_k3@scaled"  # does not read them: they are far
LEFT = "control_scrambled_rms_matching_target_scale1.0@scaled"


def dial_of_a_transform(made: MadeSweep) -> Found:
    first, *others = made.names("soft_vocab", "noisy")
    for name in others:
        made.copy_inputs(name, first)
    return {name: {"no_effect"} for name in [first, *others]}


def dial_of_a_transform_without_sketches(made: MadeSweep) -> Found:
    found = dial_of_a_transform(made)
    for result in made.results.values():
        del result["sketch"]
    return found


def dial_of_a_source(made: MadeSweep) -> Found:
    """The source `shifted` becomes another level of `noisy`, with the same baseline."""
    made.copy_inputs("baseline@shifted", "baseline@noisy")
    for result in made.results.values():
        if result["source"] == "shifted":
            result["source"] = "noisy"
    return {name: {"no_effect"} for name in ["baseline@noisy", "baseline@shifted"]}


def dial_of_a_source_without_sketches(made: MadeSweep) -> Found:
    found = dial_of_a_source(made)
    for name in list(made.results):
        if name.endswith("@shifted") and made.results[name]["control"] is None:
            made.copy_inputs(name, name.replace("@shifted", "@noisy"))
    for result in made.results.values():
        del result["sketch"]
    return found


def answers_shifted(made: MadeSweep) -> Found:
    answers = made.answers(REPAIRED)
    made.answer(REPAIRED, [*answers[1:], answers[0]])
    return {REPAIRED: {"answers_of_another"}}


def answers_of_the_example_before(made: MadeSweep) -> Found:
    answers = made.answers(REPAIRED)
    made.answer(REPAIRED, [answers[-1], *answers[:-1]])
    return {REPAIRED: {"answers_of_another"}}


def answers_swapped_in_pairs(made: MadeSweep) -> Found:
    answers = made.answers(REPAIRED)
    made.answer(REPAIRED, [answers[place ^ 1] for place in range(len(answers))])
    return {REPAIRED: {"answers_of_another"}}


def answers_reversed(made: MadeSweep) -> Found:
    made.answer(REPAIRED, made.answers(REPAIRED)[::-1])
    return {REPAIRED: {"answers_of_another"}}


def answers_of_another_configuration(made: MadeSweep) -> Found:
    """The inputs are far from real embeddings, so they cannot give the answers of a repaired configuration."""
    made.answer(BROKEN, made.answers(REPAIRED))
    return {BROKEN: {"same_answers"}}


def output_not_used(made: MadeSweep) -> Found:
    """The model gets the source's embeddings in place of the repaired ones."""
    names = [name for name in made.results if name.endswith("@noisy") and made.results[name]["control"] is None]
    for name in names:
        made.answer(name, made.answers("baseline@noisy"))
    return {name: {"same_answers"} for name in names if not name.startswith("baseline")}


def empty_on_clean_text(made: MadeSweep) -> Found:
    made.answer("baseline", [a if i % 10 == 0 else "" for i, a in enumerate(made.answers("baseline"))])
    return {"baseline": {"half_empty"}}


def half_empty_after_a_repair(made: MadeSweep) -> Found:
    made.answer(REPAIRED, [a if i % 2 else "" for i, a in enumerate(made.answers(REPAIRED))])
    return {REPAIRED: {"half_empty"}}


def alike_near_real_embeddings(made: MadeSweep) -> Found:
    made.answer(REPAIRED, [a if i % 10 == 0 else "the end" for i, a in enumerate(made.answers(REPAIRED))])
    return {REPAIRED: {"half_alike"}}


def half_cut_off(made: MadeSweep) -> Found:
    for row in made.rows[REPAIRED][::2]:
        row["cut_off"] = True
    return {REPAIRED: {"cut_off"}}


def cut_after_one_token(made: MadeSweep) -> Found:
    """No answer reaches the limit, so the limit is not the cause."""
    for row in made.rows[REPAIRED]:
        row["prediction"], row["tokens"] = row["prediction"][:3], 1
    return {REPAIRED: {"cut_off"}}


def references_shifted(made: MadeSweep) -> Found:
    for rows in made.rows.values():
        texts = [row["references"] for row in rows]
        for row, shifted in zip(rows, [*texts[3:], *texts[:3]], strict=True):
            row["references"] = shifted
    return {"baseline": {"wrong_references"}}


def references_in_a_random_order(made: MadeSweep) -> Found:
    order = made.generator.permutation(made.count)
    for rows in made.rows.values():
        texts = [row["references"] for row in rows]
        for row, k in zip(rows, order, strict=True):
            row["references"] = texts[k]
    return {"baseline": {"wrong_references"}}


def references_of_other_data(made: MadeSweep) -> Found:
    for rows in made.rows.values():
        for i, row in enumerate(rows):
            row["references"] = [f"other {i}"]
    return {"baseline": {"wrong_references"}}


def scores_above_clean(made: MadeSweep) -> Found:
    """All right answers are given, also those that the model does not know on clean text."""
    made.answer(REPAIRED, made.references)
    return {REPAIRED: {"above_clean"}}


def leak_of_the_true_tokens(made: MadeSweep) -> Found:
    made.answer(LEFT, made.read_answers())
    return {name: {"leaks"} for name in [LEFT, *made.names("rms_matching", "scaled")]}


def weak_leak(made: MadeSweep) -> Found:
    """Only half of the answers get through."""
    read = made.read_answers()
    made.answer(LEFT, [read[i] if i % 2 else answer for i, answer in enumerate(made.answers(LEFT))])
    return {name: {"leaks"} for name in [LEFT, *made.names("rms_matching", "scaled")]}


FAULTS: list[Callable[[MadeSweep], Found]] = [
    dial_of_a_transform,
    dial_of_a_transform_without_sketches,
    dial_of_a_source,
    dial_of_a_source_without_sketches,
    answers_shifted,
    answers_of_the_example_before,
    answers_swapped_in_pairs,
    answers_reversed,
    answers_of_another_configuration,
    output_not_used,
    empty_on_clean_text,
    half_empty_after_a_repair,
    alike_near_real_embeddings,
    half_cut_off,
    cut_after_one_token,
    references_shifted,
    references_in_a_random_order,
    references_of_other_data,
    scores_above_clean,
    leak_of_the_true_tokens,
    weak_leak,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_found_with_its_cause(fault):
    made = sound_sweep()
    expected = fault(made)
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
