"""Faults that finished results show: their answers, scores and settings. Main entries: `PLANTED`, `FAULTS`."""

from __future__ import annotations

from collections.abc import Callable

from latentwire.records import Finding
from tests.faults.planting import Bench, Fault
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


def failure_swallowed(made: MadeSweep) -> Found:
    """The model did not run: its answers took 1 microsecond for a position, 1 ms elsewhere."""
    for name, result in made.results.items():
        seconds = 1e-3 if name == REPAIRED else 1.0
        result["timing"] = {**result["timing"], "decoded": 60, "decode_sec": seconds, "positions": 1000}
    return {REPAIRED: {"too_fast"}}


PLANTED: list[Callable[[MadeSweep], Found]] = [
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
    failure_swallowed,
]


def _fault(plant: Callable[[MadeSweep], Found]) -> Fault:
    """Return a fault that is planted in a made-up finished sweep; it needs no model."""
    kinds = tuple(sorted(set.union(*plant(sound_sweep(count=8)).values())))

    def find(bench: Bench) -> list[Finding]:
        made = sound_sweep()
        wrong = plant(made)
        return [one for name, findings in made.findings().items() if name in wrong for one in findings]

    return Fault(plant.__name__.replace("_", " "), kinds, find)


FAULTS = [_fault(plant) for plant in PLANTED]
