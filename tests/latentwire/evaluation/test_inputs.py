"""Inputs of the LM: which tokens source and transform get, and what a span reports about its repair."""

from __future__ import annotations

import pytest
import torch
from accelerate import PartialState

from latentwire.data.examples import DataSpec
from latentwire.evaluation.inputs import RepairedInputs
from latentwire.evaluation.setup import Component, EvaluationSetup, Settings, prepare, scrambled
from latentwire.harness.errors import UserError
from tests.helpers.models import model_spec

STATE = PartialState(cpu=True)

pytestmark = pytest.mark.usefixtures("one_thread")


def setup_of(samples: int) -> EvaluationSetup:
    settings = Settings(
        samples=samples, seed=0, shots=1, questions_per_shot=1, max_new_tokens=2, batch_tokens=2000, dtype="float32"
    )
    return prepare(model_spec("tiny_random"), DataSpec("short_qa", "short_qa"), settings, STATE)


@pytest.fixture(scope="module")
def setup() -> EvaluationSetup:
    return setup_of(6)


def test_a_scrambled_example_gets_another_passage(setup):
    """The question, the length and the LM's own prompt stay."""
    for before, after in zip(setup.prompts, scrambled(setup).prompts, strict=True):
        assert after.given is not None
        assert torch.equal(after.token_ids, before.token_ids)
        passage = before.passage_mask
        assert torch.equal(after.given[~passage], before.token_ids[~passage])
        assert (after.given[passage] != before.token_ids[passage]).float().mean() > 0.7
        own = before.example.context
        others = {prompt.example.context: prompt for prompt in setup.prompts if prompt.example.context != own}
        first = int(passage.nonzero()[0])
        starts = [prompt.token_ids[prompt.passage_mask][:20].tolist() for prompt in others.values()]
        assert after.given[first : first + 20].tolist() in starts


def test_scrambling_is_the_same_every_time(setup):
    pairs = zip(scrambled(setup).prompts, scrambled(setup).prompts, strict=True)
    assert all(torch.equal(one.given, other.given) for one, other in pairs)


def test_scrambling_needs_two_passages():
    with pytest.raises(UserError, match=r"samples=1: all examples are about one passage"):
        scrambled(setup_of(1))


def test_source_and_transform_get_the_given_tokens(setup):
    """The LM embeds the example's own prompt, so the template and the length stay."""
    inputs = RepairedInputs(setup, Component("text"), Component("baseline"))
    prompt = scrambled(setup).prompts[0]
    embeds, span = inputs.embed(prompt)
    assert torch.equal(embeds, setup.lm.embed(prompt.given))
    assert torch.equal(span.own, setup.lm.embed(prompt.token_ids))
    assert torch.equal(span.real, setup.lm.embed(prompt.given[prompt.source_mask]))


def test_a_span_reports_its_change_and_its_distance(setup):
    inputs = RepairedInputs(setup, Component("scaled", {"factor": 3.0}), Component("baseline"))
    _, span = inputs.embed(setup.prompts[0])
    assert span.change == 0
    assert span.distance == pytest.approx(2, rel=1e-5)
    shorter = Component("averaged", {"ratio": 2.0, "positions": None})
    assert RepairedInputs(setup, shorter, Component("baseline")).embed(setup.prompts[0])[1].distance is None
