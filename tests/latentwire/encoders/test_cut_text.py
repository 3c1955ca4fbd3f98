"""The trained control `cut_text`: which positions it has, what passes unchanged, and what training reaches."""

from __future__ import annotations

import math

import pytest
import torch

from latentwire.encoders.base import LMFacts, make_passages
from latentwire.encoders.checkpoint import load_latents, save_latents
from latentwire.encoders.cut_text import CutText
from latentwire.encoders.pipeline import Latents, LatentSpec
from latentwire.encoders.registry import build_encoder
from latentwire.harness.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = [23, 17, 9, 6, 2]  # the ratio does not divide 23 and 17


def latents_of(tiny, vocabulary, ratio: int = 3, style_tokens: int = 2) -> Latents:
    dials = {"ratio": ratio, "style_tokens": style_tokens}
    latents = Latents(LatentSpec("cut_text", dials, 8, "baseline", {}, {"x": 1}, "tiny_random"), vocabulary)
    latents.encoder.start_from(tiny.model)
    return latents


@pytest.fixture
def passages(tiny):
    embeds = [tiny.embed(torch.arange(5, 5 + n)) for n in LENGTHS]
    return make_passages(["x"] * len(LENGTHS), embeds)


def test_the_first_tokens_pass_as_they_are(tiny, vocabulary, passages):
    """Positions are ceil(T / 3): 8, 6, 3, 2 and 1, of which two are style vectors; at least one is a token."""
    latents = latents_of(tiny, vocabulary)
    found = latents(passages)
    assert [len(rows) for rows in found] == [8, 6, 3, 2, 1] == [math.ceil(n / 3) for n in LENGTHS]
    for rows, tokens, kept in zip(found, LENGTHS, (6, 4, 1, 1, 1), strict=True):
        styles = len(rows) - kept
        assert torch.equal(rows[styles:], tiny.embed(torch.arange(5, 5 + tokens))[:kept])
        assert torch.equal(rows[:styles], latents.encoder.get_parameter("style")[:styles])
        assert styles == min(2, len(rows) - 1)


def test_training_reaches_only_the_style_vectors(tiny, vocabulary, passages):
    latents = latents_of(tiny, vocabulary)
    assert [name for name, _ in latents.named_parameters()] == ["encoder.style"]
    weights = [torch.randn(rows.shape) for rows in latents(passages)]
    sum((rows * own).sum() for rows, own in zip(latents(passages), weights, strict=True)).backward()
    by_hand = weights[0][:2] + weights[1][:2] + weights[2][:2]  # the shortest passage has no style vector
    by_hand[0] += weights[3][0]  # the one before it has only the first
    assert torch.allclose(latents.encoder.get_parameter("style").grad, by_hand, atol=1e-6)


def test_style_vectors_start_near_the_mean_token(tiny, vocabulary):
    """They differ from each other, depend on the seed, and are as long as the tokens are on average."""
    torch.manual_seed(3)
    first = latents_of(tiny, vocabulary, style_tokens=4).encoder.get_parameter("style").detach()
    assert torch.allclose(first.square().mean(dim=1).sqrt(), vocabulary.mean_rms.expand(4), rtol=1e-4)
    mean = tiny.token_embeddings().mean(dim=0)
    assert torch.cosine_similarity(first, mean[None]).min() > 0.9
    assert torch.cosine_similarity(first[:1], first[1:]).max() < 0.9999
    torch.manual_seed(3)
    assert torch.equal(latents_of(tiny, vocabulary, style_tokens=4).encoder.get_parameter("style"), first)
    assert not torch.equal(latents_of(tiny, vocabulary, style_tokens=4).encoder.get_parameter("style"), first)


def test_the_folder_holds_nothing_but_the_style(tiny, vocabulary, passages, tmp_path):
    latents = latents_of(tiny, vocabulary)
    save_latents(latents, tmp_path, {"trained_on": []})
    loaded = load_latents(str(tmp_path), vocabulary)
    assert set(loaded.state_dict()) == {"encoder.style"}
    for ours, theirs in zip(latents(passages), loaded(passages), strict=True):
        assert torch.equal(ours, theirs)


def test_it_trains_on_the_passages_of_an_encoder_of_its_ratio():
    assert CutText(LMFacts(8, 0.3), ratio=4, style_tokens=1).shortest == 4


@pytest.mark.parametrize(
    ("dials", "message"),
    [
        ({"ratio": 0, "style_tokens": 4}, "ratio=0: is the number of tokens for each position: must be at least 1"),
        ({"ratio": 4, "style_tokens": 0}, "style_tokens=0: must be at least 1"),
        ({"ratio": 4}, "cut_text needs style_tokens"),
    ],
)
def test_invalid_dials_of_the_control_are_named(dials, message):
    with pytest.raises(UserError, match=message):
        build_encoder("cut_text", dials, LMFacts(8, 0.3))
