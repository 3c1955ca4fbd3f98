"""Each detector finds its fault, and ignores harmless cases that look similar."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from latentwire.analysis.findings import joined_findings, too_fast
from latentwire.data.examples import Example
from latentwire.data.prompts import FewShotPrompt, PromptWriter
from latentwire.evaluation.detectors import (
    changes_nothing,
    dtype_changed,
    odd_predictions,
    require_finite_values,
    require_marked_text,
    require_span,
    same_output,
    shots_leak,
)
from latentwire.harness.errors import UserError
from latentwire.lm.decoding import Decoder, Generated
from latentwire.transforms.scaling import RMSMatching
from tests.helpers.random import draws

SMALL = ["model=tiny_random", "samples=6", "shots=2", "max_new_tokens=4"]


def kinds(findings: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(finding["kind"], finding["level"]) for finding in findings]


def normal(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = draws(seed)
    return [torch.randn(4, 8, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_infinite_or_nan_value_is_a_fault(bad):
    values = torch.zeros(3, 4)
    require_finite_values(values, "the source text", "q1")
    values[2, 3] = bad
    with pytest.raises(UserError, match=r"the source text gave NaN or infinite values for example q1"):
        require_finite_values(values, "the source text", "q1")


def test_a_span_must_decode_to_its_text():
    texts = ["Who sold the red boat?", "Anna sold it."]
    require_span(9, "Anna sold it. who sold the RED boat?", texts, "q1")
    with pytest.raises(UserError, match=r"span is missing from the prompt of example q1"):
        require_span(0, "", texts, "q1")
    with pytest.raises(UserError, match=r"only 38% of the words"):
        require_span(5, "Who sold boat", texts, "q1")
    require_span(5, "Who sold the boat", texts, "q1")  # 4 of 8 words


def test_marked_tokens_are_compared_as_the_tokenizer_writes_them():
    """A tokenizer may have several tokens for a text that it writes alike; other texts are refused with the cause."""
    names = ["a", "b ", " B", "c", "d"]

    def decode(ids: list[int]) -> str:
        return "".join(names[index] for index in ids)

    ids, mask = torch.tensor([4, 0, 1, 3, 4, 4]), torch.tensor([0, 1, 1, 1, 0, 0]).bool()
    require_marked_text(ids, mask, [0, 1, 3], decode, "q1")
    require_marked_text(ids, mask, [0, 2, 3], decode, "q1")  # "a Bc" for "ab c"
    with pytest.raises(UserError, match=r"example q1 is not its text: it is shifted by \+1 positions"):
        require_marked_text(ids, mask.roll(1), [0, 1, 3], decode, "q1")
    with pytest.raises(UserError, match=r"33% of the tokens are missing, with 2 marked for 3"):
        require_marked_text(ids, mask & (ids != 3), [0, 1, 3], decode, "q1")


def test_a_changed_dtype_is_reported_with_both_names():
    assert dtype_changed("the transform x", torch.float32, torch.float32) == []
    (finding,) = dtype_changed("the transform x", torch.float32, torch.float64)
    assert kinds([finding]) == [("dtype_changed", "warning")]
    assert "x returned float64 for float32 input" in finding["message"]


def test_the_same_output_for_every_input_is_detected():
    inputs = normal(6)
    constant, sequence = torch.ones(4, 8), torch.arange(32.0).reshape(4, 8)
    for output in (constant, sequence):
        assert kinds(same_output("transform", inputs, [output] * 6)) == [("same_output", "warning")]
        almost = [output * (1 + 0.001 * place) for place in range(6)]
        assert kinds(same_output("transform", inputs, almost)) == [("same_output", "warning")]
    assert same_output("transform", inputs, [constant * (1 + 0.1 * place) for place in range(6)]) == []
    assert same_output("transform", inputs, inputs) == []
    assert same_output("transform", [inputs[0]] * 6, [constant] * 6) == []  # equal inputs should give equal outputs
    assert same_output("transform", inputs[:1], [constant]) == []
    assert kinds(same_output("transform", inputs, [torch.zeros(4, 8)] * 6)) == [("same_output", "warning")]


def test_a_transform_without_effect_gives_a_note():
    """The baseline never gives this note."""
    assert kinds(changes_nothing("anchor_offset", [0.0, 0.0])) == [("changes_nothing", "note")]
    assert changes_nothing("anchor_offset", [0.0, 1e-9]) == []
    assert changes_nothing("baseline", [0.0, 0.0]) == []


def test_answers_that_are_all_empty_or_all_alike():
    references = [["a"], ["b"], ["c"]]
    assert kinds(odd_predictions(["", "", ""], references)) == [("all_empty", "warning")]
    (alike,) = odd_predictions(["x", "x", "x"], references)
    assert kinds([alike]) == [("all_alike", "warning")]
    assert "'x'" in alike["message"]
    assert kinds(odd_predictions(["", "", ""], references, far=True)) == [("all_empty", "note")]
    assert kinds(odd_predictions(["x", "x", "x"], references, far=True)) == [("all_alike", "note")]
    assert odd_predictions(["x", "x", "y"], references) == []
    assert odd_predictions(["", "", "x"], references) == []
    assert odd_predictions(["x", "x", "x"], [["x"]] * 3) == []
    assert odd_predictions([""], [["a"]]) == []


def test_up_to_5_percent_other_answers_still_count_as_alike():
    references = [[f"{number}"] for number in range(40)]
    for answers, kind in ((["x"], "all_alike"), ([""], "all_empty")):
        (found,) = odd_predictions(answers * 38 + ["y", "z"], references)  # 95%
        assert kinds([found]) == [(kind, "warning")]
        assert found["message"].startswith("95% of the answers or more are ")
        assert odd_predictions(answers * 37 + ["y", "z", "w"], references) == []


def test_answers_are_compared_after_normalization():
    references = [["a"], ["b"], ["c"]]
    (alike,) = odd_predictions(["The cat.", "cat", "a Cat!"], references)
    assert alike["message"] == "all answers are the same: 'cat'"
    assert kinds(odd_predictions(["the", "", "..."], references)) == [("all_empty", "warning")]
    assert odd_predictions(["The cat.", "cat", "cats"], references) == []


def test_equal_answers_to_equal_references_are_allowed():
    yes = [["yes"]] * 19
    assert odd_predictions(["Yes"] * 20, [*yes, ["no"]]) == []
    assert kinds(odd_predictions(["Yes"] * 20, [*yes[1:], ["no"], ["never"]])) == [("all_alike", "warning")]
    assert odd_predictions(["x"] * 3, [["The cat", "one"], ["one", "cat"], ["One.", "a cat"]]) == []


def example(identifier: str, context: str, question: str, *answers: str) -> Example:
    return Example(identifier, context, question, answers)


def test_shots_that_give_the_answer_away():
    shots = [[example("s", "Anna sold the red boat in May.", "Who sold the boat?", "Anna")]]
    clean = example("q0", "Bert bought a house.", "Who bought it?", "Bert")
    assert shots_leak(shots, [clean]) == []
    passage = example("q1", "anna  SOLD the red boat in May", "When?", "May")
    longer = example("q2", "It was so. Anna sold the red boat in May. Nobody knew.", "When?", "May")
    part = example("q3", "the red boat", "Which boat?", "red")
    for one in (passage, longer, part):
        (finding,) = shots_leak(shots, [clean, one])
        assert kinds([finding]) == [("shots_leak", "warning")]
        assert finding["message"] == f"the shots show the passage of 1 of 2 examples ({one.id})"
    question = example("q4", "Carl sold a boat.", "who sold the boat", "Carl")
    (finding,) = shots_leak(shots, [question])
    assert "the question of 1 of 1" in finding["message"]


def test_an_answer_of_the_shots_may_be_chance():
    shots = [[example("s", "Anna sold the boat.", "Who sold?", "Anna")]]
    others = [example(f"q{i}", f"Person {i} has it.", f"Who has {i}?", f"{i}") for i in range(38)]
    same = [example(f"a{i}", f"Anna is number {i}.", f"Who is {i}?", "none", "ANNA") for i in range(4)]
    assert kinds(shots_leak(shots, [*others, *same[:2]])) == [("shots_leak", "note")]  # 2 of 40: 5%
    (finding,) = shots_leak(shots, [*others, *same])
    assert kinds([finding]) == [("shots_leak", "warning")]
    assert finding["message"] == "the shots show the answer of 4 of 42 examples (a0, a1, a2, ...)"


def timed(name: str, seconds: float, positions: int, shots: tuple[float, int] = (0.0, 0), **more: str) -> dict:
    timing = {"decode_sec": seconds, "positions": positions, "shots_sec": shots[0], "shots_positions": shots[1]}
    about = {"model": "tiny", "data": "made_up", "dtype": "float32", "device": "cpu", "processes": 1}
    return {"name": name, "timing": timing, **about, **more}


def test_a_decoding_without_time_is_too_fast():
    usual = [timed(f"c{i}", 10 + i, 1000) for i in range(4)]
    found = too_fast([*usual, timed("broken", 0.001, 1000)])
    assert list(found) == ["broken"]
    assert kinds(list(found.values())) == [("too_fast", "warning")]


def test_with_most_too_fast_the_slowest_is_the_measure():
    broken = [timed(f"b{i}", 0.001, 1000) for i in range(5)]
    assert list(too_fast([*broken, timed("good", 10, 1000)])) == [f"b{i}" for i in range(5)]
    assert too_fast(broken) == {}  # if all are fast, only the shots could show it
    # With few positions each takes longer, so such a configuration is not a measure for the others.
    usual = [timed(f"c{i}", 10, 1000) for i in range(4)]
    assert too_fast([*usual, timed("few", 499, 499)]) == {}
    assert len(too_fast([*usual, timed("slow", 501, 500)])) == 4


def test_a_pause_of_the_machine_accuses_no_other():
    shots = (2.0, 200)  # 10 ms a position
    usual = [timed(f"c{i}", 5, 1000, shots) for i in range(4)]
    assert too_fast([*usual, timed("paused", 1000, 1000, shots)]) == {}


def test_with_all_too_fast_the_shots_are_the_measure():
    shots = (2.0, 200)  # 10 ms a position
    assert list(too_fast([timed("broken", 0.19, 1000, shots)])) == ["broken"]
    assert too_fast([timed("fast", 0.21, 1000, shots)]) == {}
    assert too_fast([timed("broken", 0.19, 1000, (1.99, 199))]) == {}  # too few shots


def test_reuse_other_machines_and_other_loads_are_not_too_fast():
    usual = [timed(f"c{i}", 10, 1000) for i in range(4)]
    assert too_fast([*usual, timed("reused", 0.0, 0)]) == {}
    assert too_fast([*usual, timed("short", 0.1, 10)]) == {}
    assert too_fast([*usual, timed("quiet machine", 0.5, 1000)]) == {}  # twenty times as fast
    assert list(too_fast([*usual, timed("same", 0.01, 1000)])) == ["same"]
    for field in ("device", "model", "data", "dtype", "processes"):
        assert too_fast([*usual, timed("other", 0.01, 1000, **{field: "other"})]) == {}, field
    assert too_fast([timed("a", 10, 1000), timed("b", 10, 1000), timed("c", 0.0001, 1000)]) == {}  # too few


def test_equal_findings_are_merged():
    one = {"kind": "all_empty", "level": "warning", "message": "all answers are empty"}
    other = {**one, "kind": "all_alike", "message": "all answers are the same: 'x'"}
    results = [{"name": "a", "warnings": [one]}, {"name": "b", "warnings": [other, one]}]
    results.append({"name": "c", "warnings": []})
    assert joined_findings(results) == [{**one, "names": ["a", "b"], "count": 2}, {**other, "names": ["b"], "count": 1}]


# --- faults planted in a running configuration ------------------------------------------------------------------


def result_of(name: str) -> dict:
    return json.loads(Path(f"outputs/single/{name}.json").read_text())


def test_a_constant_transform_gives_a_warning(cli, monkeypatch):
    """The analysis prints the warning too."""
    monkeypatch.setattr(RMSMatching, "repair", lambda self, x, generator: torch.full_like(x, 0.01))
    assert cli("-m", *SMALL, "embed_transform=rms_matching")[0] == 0
    found = dict(kinds(result_of("rms_scale1.0")["warnings"]))
    assert found["same_output"] == "warning"
    assert "warning: the transform gives the same output for every input" in cli("task=analyze")[1]


def test_a_changed_dtype_is_cast_and_reported(cli, monkeypatch):
    monkeypatch.setattr(RMSMatching, "forward", lambda self, x, generator: x.double())
    assert cli(*SMALL, "embed_transform=rms_matching")[0] == 0
    (finding,) = [f for f in result_of("rms_scale1.0")["warnings"] if f["kind"] == "dtype_changed"]
    assert "the transform rms_matching {'target_scale': 1.0} returned float64" in finding["message"]


def test_a_prompt_without_its_span_fails_the_configuration(cli, monkeypatch):
    real = PromptWriter.prompt

    def unmarked(self, example, passage=True):
        prompt = real(self, example, passage)
        return FewShotPrompt(prompt.example, prompt.token_ids, torch.zeros_like(prompt.source_mask), passage)

    monkeypatch.setattr(PromptWriter, "prompt", unmarked)
    status, _, err = cli(*SMALL, "seed=77")  # another seed builds a new set-up
    assert status == 1
    assert "the source span is missing from the prompt" in err
    assert "f1" not in result_of("baseline")


@pytest.mark.slow
def test_logits_that_are_not_finite_fail_the_configuration(cli, monkeypatch):
    from latentwire.lm.decoding import DecodingRows

    real = DecodingRows.prefill
    monkeypatch.setattr(DecodingRows, "prefill", lambda self: real(self) * float("nan"))
    status, _, err = cli(*SMALL, "embed_source=scaled", "factor=3.5")
    assert status == 1
    assert "the model's logits are NaN or infinite" in err


@pytest.mark.slow
def test_a_swallowed_failure_is_too_fast(cli, monkeypatch):
    generate, repair = Decoder.generate, RMSMatching.repair
    scales = [0.0]

    def spied(self, x, generator):
        scales.append(self.target_rms / float(self.vocabulary.mean_rms))
        return repair(self, x, generator)

    def swallowing(self, prompts):
        return [Generated((), "", cut_off=False)] * len(prompts) if scales[-1] > 0.355 else generate(self, prompts)

    monkeypatch.setattr(RMSMatching, "repair", spied)
    monkeypatch.setattr(Decoder, "generate", swallowing)
    command = ("-m", *SMALL, "embed_transform=rms_matching", "target_scale=0.31,0.32,0.33,0.34,0.35,0.36")
    status, out, _ = cli(*command)
    assert status == 0
    summary = json.loads(Path("outputs/single/summary.json").read_text())
    fast = [r["name"] for r in summary["results"] if "too_fast" in [w["kind"] for w in r["warnings"]]]
    assert fast == ["rms_scale0.36"]
    assert "the model probably did not run (rms_scale0.36)" in out


@pytest.mark.slow
def test_a_failure_in_every_configuration_is_too_fast(cli, monkeypatch):
    """The time of the shots shows it, because all configurations are too fast."""
    monkeypatch.setattr(Decoder, "generate", lambda self, prompts: [Generated((), "", cut_off=False)] * len(prompts))
    assert cli("-m", *SMALL, "shots=5", "seed=78")[0] == 0  # another seed builds a new set-up
    summary = json.loads(Path("outputs/single/summary.json").read_text())
    results = [*summary["results"], *summary["controls"]]
    assert len(results) == 3
    assert all(result["timing"]["shots_positions"] >= 200 for result in results)
    found = [{warning["kind"] for warning in result["warnings"]} for result in results]
    assert all("decoding" in kinds for kinds in found)  # the set-up shows it first
    found = [kinds - {"decoding"} for kinds in found]
    assert all({"too_fast", "all_empty"} <= kinds for kinds in found if kinds)
    assert sum("too_fast" in kinds for kinds in found) >= 2  # the random tokens may have been decoded in another test
