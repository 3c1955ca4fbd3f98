"""The residual stream of a passage: lengths and turns by hand, and states against transformers' own."""

from __future__ import annotations

import math

import pytest
import torch

from latentwire.evaluation.residual_stream import passage_states, residual_profile
from latentwire.lm.decoding import Prefix, encode_prefix
from latentwire.lm.models import layers_of

pytestmark = pytest.mark.usefixtures("one_thread")


def test_lengths_and_turns_by_hand():
    """Three positions and two layers: the first one turns by 45 degrees, then back by 90; the others only grow."""
    start = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    first = torch.tensor([[1.0, 1.0], [0.0, 4.0], [6.0, 0.0]])
    second = torch.tensor([[1.0, -1.0], [0.0, 4.0], [6.0, 0.0]])
    found = residual_profile(torch.stack([start, first, second]))
    root = math.sqrt(2)
    assert found["rms"] == pytest.approx([2 / root, 4 / root, 4 / root])  # the middle one of three, |x| / sqrt(2)
    assert found["turn"] == pytest.approx([(1 / root + 2) / 3, (0 + 2) / 3])
    assert found["from_input"] == pytest.approx([(1 / root + 2) / 3] * 2)


def test_a_long_input_turns_less(tiny):
    ids = torch.arange(5, 15)
    nothing = Prefix(0, ())
    short, long = (
        residual_profile(passage_states(tiny, nothing, tiny.embed(ids[:2]), factor * tiny.embed(ids)))
        for factor in (1.0, 1000.0)
    )
    assert long["rms"][0] == pytest.approx(1000 * short["rms"][0])
    assert all(b > a for a, b in zip(short["turn"], long["turn"], strict=True))
    assert long["from_input"][-1] > short["from_input"][-1]


def test_states_are_those_of_transformers(tiny):
    """With a prefix, the states equal the states of the whole text. The last one has not passed the final norm."""
    shots, before, passage = torch.arange(5, 12), torch.arange(20, 23), torch.arange(30, 36)
    whole = torch.cat([shots, before, passage])[None]
    with torch.no_grad():
        expected = tiny.model.base_model(input_ids=whole, output_hidden_states=True).hidden_states
    found = passage_states(tiny, encode_prefix(tiny, shots), tiny.embed(before), tiny.embed(passage))
    assert found.shape == (len(layers_of(tiny)) + 1, len(passage), expected[0].shape[-1])
    for own, theirs in zip(found[:-1], expected[:-1], strict=True):
        assert torch.allclose(own, theirs[0, -len(passage) :], atol=1e-4)
    with torch.no_grad():
        normed = tiny.model.base_model.norm(found[-1])
    assert torch.allclose(normed, expected[-1][0, -len(passage) :], atol=1e-4)
    assert not torch.allclose(found[-1], normed, atol=1e-2)
