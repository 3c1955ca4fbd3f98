"""Answer metrics: the registry, their scores and intervals, and the likelihood computed by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import PartialState

from latentwire.data.examples import DataSpec, choose_examples, load_data
from latentwire.data.prompts import PromptWriter
from latentwire.evaluation.evaluate import evaluate
from latentwire.evaluation.likelihood import Likelihoods, first_answer
from latentwire.evaluation.metrics import ANSWER_METRICS, Scoring, register_metric, shown_metric
from latentwire.evaluation.request import Request, read_scoring
from latentwire.evaluation.setup import Component, EvaluationSetup, Settings, prepare
from latentwire.harness.errors import UserError
from latentwire.lm.decoding import Decoder
from tests.helpers.models import model_spec
from tests.helpers.plugins import forgotten_afterwards

STATE = PartialState(cpu=True)
TEXT, BASELINE = Component("text"), Component("baseline")
NOISY, NEAREST = Component("noisy", {"snr_db": 6.0}), Component("nearest_k", {"k": 2, "alpha": 0.5})
WITH_MODEL = Scoring.of(["likelihood"], "f1")
DATA = DataSpec("short_qa", "short_qa")
SETTINGS = Settings(
    samples=9, seed=0, shots=1, questions_per_shot=2, max_new_tokens=3, batch_tokens=400, dtype="float32"
)

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.float_path]


@pytest.fixture(scope="module")
def setup() -> EvaluationSetup:
    return replace(prepare(model_spec("tiny_random"), DATA, SETTINGS, STATE), scoring=WITH_MODEL)


@pytest.fixture
def registered(tmp_path) -> Iterator[None]:
    """Forget what a test registers."""
    with forgotten_afterwards(tmp_path):
        yield


def test_f1_and_em_are_always_computed():
    assert Scoring.of([], "f1").names == Scoring.of(["em", "f1"], "em").names == ("f1", "em")
    assert Scoring.of(["likelihood", "em"], "f1").names == Scoring.of([], "likelihood").names
    assert Scoring.of([], "likelihood").needs_model
    assert not Scoring().needs_model
    assert [metric.name for metric in Scoring.of([], "likelihood").metrics] == ["f1", "em", "likelihood"]


@pytest.mark.parametrize(
    ("metrics", "primary", "message"),
    [
        (["bleu"], "f1", "metrics=bleu: unknown; use one of f1, em, likelihood"),
        ([], "bleu", "primary_metric=bleu: unknown; use one of f1, em, likelihood"),
        ([1], "f1", r"metrics=\[1\]: expected a list of names, such as metrics=\[likelihood\]"),
    ],
)
def test_unknown_metrics_are_refused(metrics, primary, message):
    with pytest.raises(UserError, match=message):
        read_scoring(metrics, primary)


def test_one_metric_needs_no_list():
    assert read_scoring("likelihood", "f1") == WITH_MODEL


def test_the_interval_of_a_metric_is_over_passages(registered):
    """By hand: Wilson's with Student's t of 19 degrees and 19 examples, as the variance of 20 has n - 1."""
    mean, interval = ANSWER_METRICS["em"].summarize([1.0, 0.0] * 10).values()
    t, p, n = 2.093024, 0.5, 19
    half = t / (1 + t * t / n) * math.sqrt(p * (1 - p) / n + t * t / (4 * n * n))
    assert (mean, interval) == (0.5, pytest.approx((0.5 - half, 0.5 + half), abs=1e-6))
    passages = [f"p{n}" for n in range(20) for _ in range(2)]
    twice = ANSWER_METRICS["em"].summarize([1.0, 1.0, 0.0, 0.0] * 10, passages)
    assert twice["interval"] == pytest.approx(interval)
    scores = [0.2, 0.8] * 50
    low, high = ANSWER_METRICS["f1"].summarize(scores)["interval"]
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.03, 0.5 + 1.96 * 0.03), abs=0.006)


def test_a_lower_is_better_metric_is_shown_turned_around(registered):
    register_metric("wer", label="WER", higher_is_better=False)(lambda prediction, references: 0.25)
    assert shown_metric("wer") == {"name": "wer", "label": "1 - WER", "higher_is_better": False}
    assert shown_metric("f1") == {"name": "f1", "label": "F1", "higher_is_better": True}


@pytest.mark.parametrize(
    ("value", "binary", "said"),
    [
        (1.5, False, "gives 1.5 for example q7, expected a number between 0 and 1"),
        (-0.01, False, "gives -0.01 for example q7"),
        (math.nan, False, "gives nan for example q7"),
        (None, False, "gives None for example q7"),
        (0.5, True, "gives 0.5 for example q7, expected 0 or 1"),
    ],
)
def test_a_value_outside_the_range_is_named(registered, value, binary, said):
    def wrong(prediction, references):
        return value

    register_metric("mine", label="Mine", binary=binary)(wrong)
    with pytest.raises(UserError) as caught:
        ANSWER_METRICS["mine"].score("a", ["b"], "q7")
    assert said in str(caught.value)
    assert str(caught.value).startswith("metrics=mine: ")
    assert str(caught.value).endswith("wrong")  # the function to fix


def test_an_exception_in_a_metric_names_the_example(registered):
    register_metric("mine", label="Mine")(lambda prediction, references: 1 / len(prediction))
    assert ANSWER_METRICS["mine"].score("ab", [], "q7") == 0.5
    with pytest.raises(UserError, match=r"metrics=mine: raises ZeroDivisionError for example q7 \(division by zero\)"):
        ANSWER_METRICS["mine"].score("", [], "q7")


def test_values_at_the_ends_of_the_range_count(registered):
    register_metric("mine", label="Mine")(lambda prediction, references: torch.tensor(float(prediction)))
    assert [ANSWER_METRICS["mine"].score(text, [], "q") for text in ("0", "1")] == [0.0, 1.0]


def test_a_metric_needs_only_what_exists():
    with pytest.raises(UserError, match="metric mine: needs='judge' is unknown; a metric can need 'model'"):
        register_metric("mine", label="Mine", needs=("judge",))


def test_only_further_metrics_are_in_the_identity(registered):
    def identity(scoring: Scoring) -> dict[str, Any]:
        request = Request(model_spec("tiny_random"), DATA, SETTINGS, torch.float32, TEXT, BASELINE, scoring=scoring)
        return request.identity()

    assert identity(Scoring()) == identity(Scoring.of(["em"], "em"))  # the primary metric decides no result
    assert identity(WITH_MODEL) == identity(Scoring.of([], "likelihood")) != identity(Scoring())
    assert "plugins" not in identity(WITH_MODEL)
    register_metric("mine", label="Mine")(test_only_further_metrics_are_in_the_identity)
    (source,) = identity(Scoring.of(["mine"], "f1"))["plugins"].items()
    assert source[0] == "metrics=mine"
    assert len(source[1]) == 16  # the digest of this file


# --- the likelihood ---------------------------------------------------------------------------------------------


def likelihoods(setup: EvaluationSetup, source: Component, transform: Component) -> dict[str, float]:
    _, rows = evaluate(setup, source, transform, STATE, "")
    return {row["id"]: row["scores"]["likelihood"] for row in rows}


@torch.no_grad()
@pytest.mark.parametrize(("source", "transform"), [(TEXT, BASELINE), (NOISY, NEAREST)])
def test_the_likelihood_equals_the_models_own(setup, source, transform, monkeypatch):
    """The same repaired inputs, one example at a time, without a cache of the shots."""
    inputs: dict[str, torch.Tensor] = {}
    real = Decoder.answer_logps

    def recording(self, prompts, answers):
        inputs.update({str(list(answer)): prompt for prompt, answer in zip(prompts, answers, strict=True)})
        return real(self, prompts, answers)

    monkeypatch.setattr(Decoder, "answer_logps", recording)
    found = likelihoods(setup, source, transform)
    assert len(found) == len(setup.prompts)
    shots = setup.lm.embed(shots_of(setup))
    for prompt in setup.prompts:
        answer = first_answer(setup, prompt.example)
        own = torch.cat([shots, inputs[str(answer)], setup.lm.embed(torch.tensor(answer))])
        logits = setup.lm.model(inputs_embeds=own[None]).logits[0, -len(answer) - 1 : -1]
        logps = logits.log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)]
        assert found[prompt.example.id] == pytest.approx(float(logps.mean().exp()), rel=1e-4)
    if source is TEXT:
        nll = Likelihoods(setup, STATE).over(TEXT, "")  # another implementation, for the report of latents
        expected = [math.exp(-own.nll) for own in nll]
        assert list(found.values()) == pytest.approx(expected, rel=1e-4)
    else:
        assert found != likelihoods(setup, source, BASELINE)  # the transform counts


def shots_of(setup: EvaluationSetup) -> torch.Tensor:
    s = SETTINGS
    shots, _ = choose_examples(load_data(DATA), s.samples, s.shots, s.questions_per_shot, s.seed)
    return PromptWriter(setup.lm.tokenizer).shots(shots)


def test_answers_of_different_lengths_share_a_batch(setup):
    lengths = {len(first_answer(setup, prompt.example)) for prompt in setup.prompts}
    assert len(lengths) > 1 and max(lengths) == SETTINGS.max_new_tokens  # longer answers are cut
    assert max(map(len, setup.batches)) > 1


def test_the_model_is_asked_for_likelihoods_only_on_demand(setup, monkeypatch):
    monkeypatch.setattr(Decoder, "answer_logps", None)
    _, rows = evaluate(replace(setup, scoring=Scoring()), TEXT, BASELINE, STATE, "")
    assert set(rows[0]["scores"]) == {"f1", "em"}


def test_two_processes_give_the_same_likelihoods(setup, monkeypatch):
    alone = likelihoods(setup, NOISY, NEAREST)
    assert len(setup.batches) > 2
    shares: list[list[Any]] = []

    def joined(state: Any, items: list[Any]) -> list[Any]:
        if items and hasattr(items[0], "row"):
            shares.append(items)
            return [answer for share in shares for answer in share] if len(shares) == 2 else items
        return items

    monkeypatch.setattr("latentwire.evaluation.evaluate.gather_from_all", joined)
    monkeypatch.setattr("latentwire.harness.gather.gather_from_all", lambda state, items: items)
    for rank in range(2):
        fresh = replace(prepare(model_spec("tiny_random"), DATA, SETTINGS, STATE), scoring=WITH_MODEL)
        state: Any = SimpleNamespace(process_index=rank, num_processes=2)
        _, rows = evaluate(fresh, NOISY, NEAREST, state, "")
    assert all(0 < len(share) < len(alone) for share in shares)
    # A BLAS library may round differently where a buffer begins elsewhere in memory.
    assert {row["id"]: row["scores"]["likelihood"] for row in rows} == pytest.approx(alone, rel=1e-4)


def test_equal_inputs_have_a_likelihood_for_each_answer(setup):
    prompt = setup.lm.embed(setup.prompts[0].token_ids)
    (first,), (second,) = (setup.decoder.answer_logps([prompt], [[token]]) for token in (5, 6))
    assert first != pytest.approx(second, abs=1e-2)
    (logps,) = setup.decoder.answer_logps([prompt], [[5, 6]])
    assert logps[:1] == pytest.approx(first, abs=1e-4)
    assert logps[1:] != pytest.approx(second, abs=1e-2)  # the answer's tokens are read one after the other


def test_an_answer_without_tokens_is_named(setup):
    example = replace(setup.prompts[0].example, answers=("",))
    setup_without = replace(setup, lm=SimpleNamespace(tokenizer=lambda text, add_special_tokens: {"input_ids": []}))
    with pytest.raises(UserError, match=rf"the answer '' of example {example.id} has no tokens"):
        first_answer(setup_without, example)
