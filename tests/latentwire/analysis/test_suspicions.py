"""Detectors of finished results: levels of findings, thresholds and rates. The faults that they find: tests/faults."""

from __future__ import annotations

import numpy as np
import pytest

from latentwire.analysis.finished import NEAR, Answered, FinishedSweep
from latentwire.analysis.odd_answers import odd_halves
from latentwire.analysis.suspicions import KINDS, above_clean, leaking, leaks
from latentwire.records import F1
from tests.helpers.finished_sweeps import MadeSweep, sound_sweep
from tests.helpers.results import result_of

REPAIRED = "rms_matching_target_scale1.0@scaled"


def half_empty(made: MadeSweep, name: str) -> None:
    made.answer(name, [answer if place % 2 else "" for place, answer in enumerate(made.answers(name))])


@pytest.mark.parametrize(("distance", "level"), [(NEAR - 0.01, "warning"), (NEAR + 0.01, "note"), (None, "note")])
def test_empty_answers_are_a_note_where_inputs_are_far(distance, level):
    """Without stored distances, only text counts as near."""
    made = sound_sweep(count=20)
    half_empty(made, REPAIRED)
    for row in made.rows[REPAIRED]:
        if distance is None:
            del row["distance"]
        else:
            row["distance"] = distance
    found = [(one["kind"], one["level"]) for one in made.findings()[REPAIRED]]
    assert found == [("half_empty", level)]


def test_nearly_all_empty_answers_are_not_called_half():
    """`all_empty` reports them, while the configuration runs."""
    made = sound_sweep(count=20)
    made.answer(REPAIRED, [""] * 19 + ["paper"])
    assert odd_halves(Answered(made.results[REPAIRED], made.rows[REPAIRED])) == {}


def test_only_the_clean_control_warns_of_what_it_shows_too():
    made = sound_sweep(count=20)
    for name in ("baseline", REPAIRED):
        half_empty(made, name)
    assert made.warnings() == {"baseline": {"half_empty"}}
    assert [one["level"] for one in made.findings()[REPAIRED]] == ["note"]


def test_a_dial_that_saturates_is_a_note():
    made = sound_sweep(count=20)
    first, second, third = made.names("nearest_k", "noisy")
    made.copy_inputs(second, first)
    found = made.findings()
    assert [one["level"] for one in found[first] if one["kind"] == "no_effect"] == ["note"]
    assert [one["level"] for one in found[second] if one["kind"] == "no_effect"] == ["note"]
    assert not [one for one in found.get(third, []) if one["kind"] == "no_effect"]


def test_other_sketches_show_that_a_dial_has_an_effect():
    """Answers and changes are equal, but the embeddings are not."""
    made = sound_sweep(count=20)
    first, second, _ = made.names("nearest_k", "noisy")
    sketch = made.results[second]["sketch"]
    made.copy_inputs(second, first)
    made.results[second]["sketch"] = sketch
    assert "no_effect" not in {one["kind"] for one in made.findings().get(first, [])}


@pytest.mark.parametrize("control", ["baseline", "control_empty"])
def test_answers_of_a_control_are_natural(control):
    """Without distances, as for latents: two families answer as on clean text, or as without a passage."""
    made = sound_sweep(count=40)
    names = ["nearest_k_k3@noisy", "soft_vocab_tau0.1@noisy"]
    for name in names:
        made.answer(name, made.answers(control))
        for row in made.rows[name]:
            del row["distance"]
    assert not set(names) & set(made.warnings())


@pytest.mark.parametrize("cut", [False, True])
def test_endless_answers_accuse_no_references(cut):
    made = sound_sweep(count=20)
    for rows in made.rows.values():
        for place, row in enumerate(rows):
            row["references"], row["cut_off"] = [f"other {place}"], cut
    assert ("wrong_references" in made.warnings()["baseline"]) is (not cut)


def answered(name: str, right: np.ndarray, **more: object) -> Answered:
    """Return a result with answers that are right or wrong."""
    rows = [
        {"id": f"q{i}", "question": "", "references": [f"word{i}"], "prediction": f"word{i}" if is_right else "other",
         "f1": float(is_right), "em": float(is_right), "scores": {"f1": float(is_right)}, "passage": f"p{i}"}
        for i, is_right in enumerate(right)
    ]  # fmt: skip
    family = str(more.pop("family", "rms_matching"))
    return Answered(result_of(family, name, right.astype(float), "scaled", **more), rows)  # type: ignore[arg-type]


def controls(clean: np.ndarray, empty: np.ndarray) -> list[Answered]:
    """Return a clean control and an empty context."""
    return [
        answered("control_clean", clean, family="baseline", control="clean"),
        answered("control_empty", empty, family="baseline", control="empty"),
    ]


@pytest.mark.parametrize(("count", "found"), [(0, False), (8, False), (40, True)])
def test_a_leak_is_more_than_chance_matches(count, found):
    """Of 200 answers to other passages, 8 are 4% of the way to clean text: below LEAK, though clearly above empty."""
    right = np.arange(200) < count
    scrambled = answered("control_scrambled_rms", right, control="scrambled")
    own = answered("rms", np.ones(200, dtype=bool))
    other = answered("other", np.ones(200, dtype=bool), family="nearest_k")
    sweep = FinishedSweep([*controls(np.ones(200, dtype=bool), right & False), own, other, scrambled], F1)
    names = {"control_scrambled_rms", "rms"} if found else set()
    assert set(leaks(sweep)) == names
    results = [one.result | {"warnings": leaks(sweep).get(one.name, [])} for one in sweep.answered]
    assert leaking(results) == names  # type: ignore[arg-type]


@pytest.mark.slow
def test_equal_results_are_rarely_above_clean():
    """Eight results with the clean control's rate, in 200 sweeps: at most ALPHA / 2, plus three standard errors."""
    generator = np.random.default_rng(0)
    flagged = 0
    for _ in range(200):
        known = generator.random(60)
        draws = [known + generator.normal(0, 0.3, 60) < 0.7 for _ in range(9)]
        repairs = [answered(f"r{i}", right) for i, right in enumerate(draws[1:])]
        flagged += bool(above_clean(FinishedSweep([*controls(draws[0], known < 0), *repairs], F1)))
    assert flagged / 200 <= 0.025 + 3 * (0.025 * 0.975 / 200) ** 0.5


def test_kinds_are_those_of_the_detectors():
    """An analysis that is made again replaces findings of these kinds, so none may be missing."""
    made = sound_sweep(count=20)
    for name in (REPAIRED, "baseline"):
        half_empty(made, name)
    found = {one["kind"] for findings in made.findings().values() for one in findings}
    assert found and found <= KINDS


@pytest.mark.parametrize(("equal", "kinds"), [(8, []), (5, ["half_alike"])])
def test_answers_alike_are_odd_if_right_answers_vary(equal, kinds):
    """11 of 20 answers are yes; 8 right answers of yes explain them, 5 do not."""
    rows = [
        {"id": f"q{i}", "references": ["yes" if i < equal else f"w{i}"], "prediction": "yes" if i < 11 else f"w{i}"}
        for i in range(20)
    ]
    one = Answered(result_of("baseline", "b", np.zeros(20), "text"), rows)  # type: ignore[arg-type]
    assert list(odd_halves(one)) == kinds
