"""Ratios and kinds that the plan gives to steps, and the settings that identify a run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from latentwire.data.examples import Example
from latentwire.harness.errors import UserError
from latentwire.latent_training.losses import LossWeights
from latentwire.latent_training.passages import Passage
from latentwire.latent_training.step_plan import TrainingSpec, TrainingStep, plan_steps

QUESTION = (Example("a", "A text.", "What?", ("A text",)),)
PASSAGES = [Passage(f"Text {n}.", QUESTION) for n in range(40)]
# The settings of a run before there were ratios, shares of continuation, other rates and halves of a file.
BEFORE = {
    "samples": 9, "extra_words": None, "epochs": 1, "first_phase": 0.5, "held_out": 0.1, "shots": 1,
    "questions_per_shot": 1, "answer_tokens": 8, "max_new_tokens": 2, "distance": "cosine", "passages_per_step": 2,
    "batch_tokens": 99, "evaluate_every": 1, "judge_by": None, "patience": 3,
}  # fmt: skip
LOSSES = ("embedding", "vocabulary", "text", "continuation", "answer", "distillation", "rms", "manifold")


def plan_of(*losses: str, seed: int = 0, **changes: object) -> list[TrainingStep]:
    weights = LossWeights(**{name: float(name in losses) for name in (*LOSSES, "hidden")})
    spec = TrainingSpec(**{**BEFORE, **changes})
    return plan_steps(PASSAGES, [9] * len(PASSAGES), spec, weights, seed)


def kinds_of(share: float, epochs: int = 1) -> str:
    """Return the first letters of the kinds of steps, of which an epoch has 20."""
    plan = plan_of("text", "continuation", continuation_share=share, epochs=epochs)
    return "".join(step.kind[0] for step in plan)


def test_continuation_gets_its_share_at_even_distances():
    assert kinds_of(0.5) == "rc" * 10
    assert kinds_of(0.25) == "rrrc" * 5
    assert kinds_of(0.75) == "rccc" * 5
    assert kinds_of(0.0) == "r" * 20
    assert kinds_of(1.0) == "c" * 20
    assert kinds_of(0.3, epochs=3).count("c") == 18  # the distances go on over epochs
    assert kinds_of(0.5, epochs=2) == "rc" * 20


def test_one_kind_of_loss_needs_no_share():
    for share in (0.0, 1.0):
        assert {step.kind for step in plan_of("text", continuation_share=share)} == {"reconstruction"}
        assert {step.kind for step in plan_of("continuation", continuation_share=share)} == {"continuation"}


def test_ratios_are_drawn_until_the_last_share_of_the_steps():
    plan = plan_of("text", "answer", ratios=[8, 4, 2], epochs=4)
    assert len(plan) == 80
    drawn, rest = [step.ratio for step in plan[:56]], [step.ratio for step in plan[56:]]
    assert set(drawn) == {8, 4, 2} and set(rest) == {None}
    assert all(drawn.count(ratio) >= 5 for ratio in (8, 4, 2))
    assert {step.kind for step in plan[:56]} == {"reconstruction", "answers"}  # in either phase
    assert {step.ratio for step in plan_of("text", ratios=[4], mixed_share=1.0)} == {4}
    assert {step.ratio for step in plan_of("text", ratios=[4], mixed_share=0.0)} == {None}
    assert {step.ratio for step in plan_of("text")} == {None}


def test_ratios_are_seeded_and_change_nothing_else():
    first, again, other = (plan_of("text", "answer", ratios=[4, 2], epochs=4, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert [step.ratio for step in first] != [step.ratio for step in other]
    plain = plan_of("text", "answer", epochs=4)
    assert [replace(step, ratio=None) for step in first] == plain


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ratios", [0], r"ratios=\[0\]: must be ratios of 1 or more, such as \[8,4,2\], or null"),
        ("ratios", [4, -2], r"ratios=\[4, -2\]: must be ratios of 1 or more"),
        ("ratios", [], r"ratios=\[\]: must be ratios of 1 or more"),
        ("mixed_share", 2.0, r"mixed_share=2\.0: must be a share, from 0 to 1"),
        ("continuation_share", -1.0, r"continuation_share=-1\.0: must be a share, from 0 to 1"),
        ("copied_rate", -1.0, r"copied_rate=-1\.0: must be 0 or more"),
        ("copied_rate", float("inf"), "copied_rate=inf: must be 0 or more"),
        ("copied_rate", float("nan"), "copied_rate=nan: must be 0 or more"),
    ],
)
def test_settings_out_of_range_are_named(name, value, message):
    with pytest.raises(UserError, match=message):
        TrainingSpec(**{**BEFORE, name: value})


def test_later_settings_at_their_defaults_do_not_identify_a_run():
    """So runs from before these settings are found again; with another value a run is another one."""
    assert TrainingSpec(**BEFORE).identity() == BEFORE
    defaults = {"continuation_share": 0.5, "ratios": None, "mixed_share": 0.7, "copied_rate": 1.0, "extra_part": "all"}
    assert TrainingSpec(**BEFORE, **defaults).identity() == BEFORE
    others = {"continuation_share": 0.2, "ratios": [4], "mixed_share": 0.5, "copied_rate": 0.1, "extra_part": "select"}
    for name, value in others.items():
        assert TrainingSpec(**{**BEFORE, **defaults, name: value}).identity() == {**BEFORE, name: value}


def test_the_loss_of_hidden_states_identifies_a_run_if_it_is_on():
    weights = dict.fromkeys(LOSSES, 0.5)
    assert LossWeights(**weights, hidden=0.0).identity() == weights
    assert LossWeights(**weights, hidden=2.0).identity() == {**weights, "hidden": 2.0}


def test_hidden_states_alone_train_answers_with_a_teacher():
    weights = LossWeights(**dict.fromkeys(LOSSES, 0.0), hidden=1.0)
    assert weights.trains_answers() and weights.needs_teacher() and weights.needs_lm()
    assert weights.first_phase_kinds() == []
    assert {step.kind for step in plan_of("hidden")} == {"answers"}
    assert not LossWeights(**{**dict.fromkeys(LOSSES, 0.0), "answer": 1.0}, hidden=0.0).needs_teacher()
