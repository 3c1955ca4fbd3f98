"""Dtypes of an evaluation: source and transform compute in float32, the LM in its own dtype."""

from __future__ import annotations

import pytest
import torch
from accelerate import PartialState

from latentwire.data.examples import DataSpec
from latentwire.evaluation.evaluate import evaluate
from latentwire.evaluation.setup import Component, EvaluationSetup, Settings, prepare
from latentwire.lm.decoding import Decoder
from latentwire.sources.base import Source
from tests.helpers.models import model_spec

STATE = PartialState(cpu=True)

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.float_path]


@pytest.fixture(scope="module")
def rounded() -> EvaluationSetup:
    """Return a set-up whose LM computes in bfloat16."""
    settings = Settings(
        samples=2, seed=0, shots=1, questions_per_shot=1, max_new_tokens=2, batch_tokens=2000, dtype="bfloat16"
    )
    return prepare(model_spec("tiny_random"), DataSpec("short_qa", "short_qa"), settings, STATE)


@pytest.fixture
def dtypes(monkeypatch) -> dict[str, set[torch.dtype]]:
    """Dtypes of the inputs of the sources and of the LM."""
    given: dict[str, set[torch.dtype]] = {"source": set(), "lm": set()}
    distort, decode = Source.__call__, Decoder.decode

    def spied(self, x, generator, passage=""):
        given["source"].add(x.dtype)
        return distort(self, x, generator, passage)

    def decoded(self, prompts):
        given["lm"] |= {prompt.dtype for prompt in prompts}
        return decode(self, prompts)

    monkeypatch.setattr(Source, "__call__", spied)
    monkeypatch.setattr(Decoder, "decode", decoded)
    return given


@pytest.mark.parametrize(
    "source", [Component("noisy", {"snr_db": 6.0}), Component("averaged", {"ratio": 2.0, "positions": None})]
)
@pytest.mark.parametrize("transform", ["baseline", "moment_matching"])
def test_sources_receive_float32_and_the_lm_its_dtype(rounded, dtypes, source, transform):
    scores, _ = evaluate(rounded, source, Component(transform), STATE, "")
    assert dtypes == {"source": {torch.float32}, "lm": {torch.bfloat16}}
    assert not [one for one in scores["warnings"] if one["kind"] == "dtype_changed"]


def test_a_rotation_is_found_and_undone_for_an_lm_in_bfloat16(rounded):
    scores, rows = evaluate(rounded, Component("rotated"), Component("auto"), STATE, "")
    assert scores["fit"]["diagnosis"]["chain"] == ["rotation", "nearest_token"]
    _, clean = evaluate(rounded, Component("text"), Component("baseline"), STATE, "")
    assert [row["prediction"] for row in rows] == [row["prediction"] for row in clean]
