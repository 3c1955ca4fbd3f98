"""Markers, positions and ratios of encoders that pool tokens."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from latentwire.encoders.base import LMFacts, Passages, make_passages
from latentwire.encoders.bottleneck import Bottleneck
from latentwire.encoders.lm_layers import LMLayers
from latentwire.encoders.pipeline import at_ratio
from latentwire.encoders.registry import encoder_identity, encoder_lm_config
from latentwire.harness.errors import UserError
from tests.helpers.random import draws

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.float_path]

DIALS = {"layers": 1, "ratio": 2, "groups": "equal", "pool": "mean"}


def encoder_of(tiny, **changes: object) -> LMLayers:
    encoder = LMLayers(LMFacts(64, 0.3, encoder_lm_config("lm_layers", tiny.model)), **{**DIALS, **changes})
    encoder.start_from(tiny.model)
    nn.init.eye_(encoder.addition.weight)
    return encoder.eval()


def of_lengths(*lengths: int) -> Passages:
    return make_passages(
        [str(n) for n in lengths],
        [torch.randn(n, 64, generator=draws(n)) for n in lengths],
        [list(range(5, 5 + n)) for n in lengths],
    )


@torch.no_grad()
@pytest.mark.parametrize("groups", ["equal", "words"])
def test_markers_follow_the_latents_of_each_passage(tiny, groups):
    """They are the same for every passage, and the other positions share the passage's tokens."""
    encoder, passages = encoder_of(tiny, markers=2, groups=groups), of_lengths(12, 7)
    encoder.learn(passages.ids, tiny.tokenizer)
    z = encoder(passages)
    assert z.shape == (2, 6, 64)
    assert [encoder.positions(tokens) for tokens in (12, 7)] == [6, 4]
    assert encoder.markers.shape == (2, 64) and not torch.equal(*encoder.markers)
    assert torch.equal(z[0, 4:], encoder.markers) and torch.equal(z[1, 2:4], encoder.markers)
    alone = encoder(of_lengths(7))[0]
    assert torch.allclose(z[1, :4], alone, atol=1e-4)


@torch.no_grad()
def test_the_other_positions_share_all_tokens_of_a_passage(tiny):
    """4 positions of 12 tokens hold groups of 3 tokens; nothing of a passage is left out."""
    encoder, passages = encoder_of(tiny, markers=2), of_lengths(12)
    found = encoder.stands_for(passages)[0]
    assert torch.allclose(found[:4], passages.embeds[0].unflatten(0, (4, 3)).mean(dim=1), atol=1e-6)
    assert torch.equal(found[4:], torch.zeros(2, 64))
    nn.init.zeros_(encoder.addition.weight)
    assert torch.allclose(encoder(passages)[0, :4], found[:4] / 0.3, atol=1e-5)


@torch.no_grad()
def test_markers_leave_no_word_group_out(tiny):
    """The sums of the groups before the markers hold each token once."""
    encoder, passages = encoder_of(tiny, markers=2, groups="words"), of_lengths(12)
    encoder.learn(passages.ids, tiny.tokenizer)
    nn.init.zeros_(encoder.addition.weight)
    nn.init.constant_(encoder.gate.bias, 50.0)  # all gates are 2
    assert torch.allclose(encoder(passages)[0, :4].sum(dim=0), 2 * passages.embeds[0].sum(dim=0) / 0.3, atol=1e-3)
    assert encoder.stands_for(passages).shape == (1, 6, 64)


def test_a_shorter_passage_stands_for_nothing_at_its_markers(tiny):
    found = encoder_of(tiny, markers=1).stands_for(of_lengths(12, 6))
    assert found.shape == (2, 6, 64)
    assert (found[1] != 0).any(dim=-1).tolist() == [True, True, False, False, False, False]


def test_markers_are_trained(tiny):
    encoder = encoder_of(tiny, markers=2)
    encoder(of_lengths(9))[0, -1].sum().backward()
    assert encoder.markers.grad.tolist() == [[0.0] * 64, [1.0] * 64]
    assert encoder_of(tiny).markers is None
    assert "markers" not in encoder_of(tiny).state_dict()


def test_the_shortest_passage_has_one_latent_besides_markers(tiny):
    encoder = encoder_of(tiny, markers=2)
    assert encoder.shortest == 6
    assert encoder.positions(6) == 3
    message = "ratio=2 with markers=2: more than the 5 tokens of a passage; use an encoder with ratio=1 or less"
    with pytest.raises(UserError, match=message):
        encoder.positions(5)
    with at_ratio(encoder, 4):
        assert encoder.shortest == 12
        with pytest.raises(UserError, match=r"ratio=4 with markers=2: more than the 11 tokens .* with ratio=3 or less"):
            encoder.positions(11)
    assert encoder_of(tiny).shortest == 2


@torch.no_grad()
@pytest.mark.parametrize("pool", ["mean", "query"])
def test_another_ratio_encodes_as_an_encoder_of_that_ratio(tiny, pool):
    encoder, other = encoder_of(tiny, ratio=2, pool=pool), encoder_of(tiny, ratio=4, pool=pool)
    other.load_state_dict(encoder.state_dict())
    passages = of_lengths(12, 7)
    usual = encoder(passages)
    with at_ratio(encoder, 4):
        assert torch.equal(encoder(passages), other(passages))
        assert encoder.positions(7) == 2
    assert torch.equal(encoder(passages), usual)


def test_the_ratio_returns_after_an_error(tiny):
    encoder = encoder_of(tiny)
    with pytest.raises(KeyError), at_ratio(encoder, 8):
        raise KeyError
    assert encoder.ratio == 2
    with at_ratio(encoder, None):
        assert encoder.ratio == 2
    with pytest.raises(UserError, match="ratio=2: Bottleneck has no ratio that can change"), at_ratio(
        Bottleneck(LMFacts(64, 0.3), d_z=4), 2
    ):  # fmt: skip
        pass


def test_markers_below_0_are_refused(tiny):
    with pytest.raises(UserError, match="markers=-1: must be 0 or more"):
        encoder_of(tiny, markers=-1)


def test_dials_at_their_defaults_are_not_in_an_identity():
    """So encoders trained before a dial existed keep their identity."""
    before = {"name": "lm_layers", "dials": DIALS, "versions": {}}
    assert encoder_identity("lm_layers", {**DIALS, "markers": 0}) == encoder_identity("lm_layers", DIALS) == before
    assert encoder_identity("lm_layers", {**DIALS, "markers": 2})["dials"] == {**DIALS, "markers": 2}
