"""Layers that halve the positions, and the attention of layers without their MLPs, against the LM's own modules."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPTNeoXConfig

from latentwire.encoders.base import LMFacts, Passages, make_passages
from latentwire.encoders.lm_layers import LMAttention, LMLayers, copy_weights, first_layers
from latentwire.encoders.registry import encoder_lm_config
from latentwire.harness.errors import UserError
from tests.helpers.random import draws

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.float_path]

RMS = 0.3  # the RMS of tokens that the encoders are given


def facts(tiny) -> LMFacts:
    return LMFacts(64, RMS, encoder_lm_config("lm_layers", tiny.model))


def halving(tiny, ratio: int, layers: int = 2) -> LMLayers:
    """Return an encoder whose latents are the means of their groups plus the states of its layers."""
    encoder = LMLayers(facts(tiny), layers=layers, ratio=ratio, groups="equal", pool="halving")
    encoder.start_from(tiny.model)
    nn.init.eye_(encoder.addition.weight)
    return encoder.eval()


def of_lengths(*lengths: int) -> Passages:
    return make_passages(
        [str(n) for n in lengths], [RMS * torch.randn(n, 64, generator=draws(n)) for n in lengths]
    )  # fmt: skip


def lm_layer(tiny, layer: int, x: Tensor, stride: int) -> Tensor:
    """Return the output of a layer of the LM itself for (T, D) inputs, `stride` positions apart, without a mask."""
    body = tiny.model.base_model
    places = stride * torch.arange(len(x))[None]
    output = body.layers[layer](
        x[None], attention_mask=torch.zeros(1, 1, len(x), len(x)), position_ids=places,
        position_embeddings=body.rotary_emb(x[None], places),
    )  # fmt: skip
    return (output if isinstance(output, Tensor) else output[0])[0]


def pairs(x: Tensor) -> Tensor:
    """Return the means of neighbours: (T, D) -> (T / 2, D)."""
    return (x[0::2] + x[1::2]) / 2


@torch.no_grad()
def test_layers_that_halve_equal_the_lms_by_hand(tiny):
    """With ratio 4 both layers halve their input, with ratio 2 only the last one."""
    passages, norm = of_lengths(8), tiny.model.base_model.norm
    x = passages.embeds[0]
    both = norm(lm_layer(tiny, 1, pairs(lm_layer(tiny, 0, pairs(x), 2)), 4))
    assert torch.allclose(halving(tiny, 4)(passages)[0], x.unflatten(0, (2, 4)).mean(dim=1) / RMS + both, atol=1e-4)
    last = norm(lm_layer(tiny, 1, pairs(lm_layer(tiny, 0, x, 1)), 2))
    assert torch.allclose(halving(tiny, 2)(passages)[0], pairs(x) / RMS + last, atol=1e-4)
    assert torch.allclose(halving(tiny, 1)(passages)[0], x / RMS + norm(lm_layer(tiny, 1, lm_layer(tiny, 0, x, 1), 1)),
                          atol=1e-4)  # fmt: skip


@torch.no_grad()
def test_halved_latents_read_all_tokens_but_average_their_own(tiny):
    passages = of_lengths(8)
    other = passages.embeds.clone()
    other[0, 5] += 1
    moved, encoder = Passages(passages.texts, [8], other), halving(tiny, 4)
    assert ((encoder(moved) - encoder(passages)).abs() > 1e-4).any(dim=-1).tolist() == [[True, True]]
    nn.init.zeros_(encoder.addition.weight)
    changes = (encoder(moved) - encoder(passages))[0]
    assert torch.equal(changes[0], torch.zeros(64))
    assert torch.allclose(changes[1], torch.full((64,), 1 / 4 / RMS), atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("tokens", "ratio", "last"), [(9, 2, 1), (7, 4, 3), (10, 4, 2), (33, 4, 1)])
def test_a_remainder_is_the_last_group(tiny, tokens, ratio, last):
    """The averages have the groups that the layers pool, also where the length is not a multiple of the ratio."""
    encoder, passages = halving(tiny, ratio), of_lengths(tokens)
    assert encoder.positions(tokens) == encoder(passages).shape[1] == -(-tokens // ratio)
    found, x = encoder.stands_for(passages)[0], passages.embeds[0]
    assert torch.allclose(found[-1], x[-last:].mean(dim=0), atol=1e-6)
    assert torch.allclose(found[:-1], x[: tokens - last].unflatten(0, (-1, ratio)).mean(dim=1), atol=1e-6)


@torch.no_grad()
def test_halving_ignores_the_other_passages_of_a_batch(tiny):
    both, encoder = of_lengths(11, 6), halving(tiny, 4)
    z = encoder(both)
    assert z.shape == (2, 3, 64)
    for row, length in enumerate((11, 6)):
        alone = encoder(of_lengths(length))[0]
        assert torch.allclose(z[row, : len(alone)], alone, atol=1e-4)


@pytest.mark.parametrize(
    ("dials", "message"),
    [
        ({"ratio": 3}, "ratio=3: must be a power of 2 with pool=halving"),
        ({"ratio": 8}, "ratio=8: 2 layers can halve to 4 at most; use more layers"),
        ({"groups": "words"}, "groups=words: pool=halving makes groups of equal size; use groups=equal"),
        ({"markers": 1}, "markers=1: cannot be used with pool=halving: use 0"),
    ],
)
def test_halving_refuses_what_it_cannot_pool(tiny, dials, message):
    with pytest.raises(UserError, match=message):
        LMLayers(facts(tiny), **{"layers": 2, "ratio": 2, "groups": "equal", "pool": "halving", **dials})


def test_a_ratio_drawn_later_must_be_a_power_of_2_too(tiny):
    encoder = halving(tiny, 2)
    for ratio, message in ((3, "ratio=3: must be a power of 2"), (8, "ratio=8: 2 layers can halve to 4")):
        encoder.ratio = ratio
        with pytest.raises(UserError, match=message):
            encoder.positions(99)


@torch.no_grad()
def test_attention_alone_equals_the_lms_attention(tiny):
    """Each layer adds its attention's output to its input, and nothing else."""
    encoder = LMAttention(facts(tiny), layers=2, ratio=1, groups="equal", pool="mean").eval()
    encoder.start_from(tiny.model)
    nn.init.eye_(encoder.addition.weight)
    passages, body = of_lengths(5), tiny.model.base_model
    x, places = passages.embeds, torch.arange(5)[None]
    for layer in body.layers:
        normed = layer.input_layernorm(x)
        x = x + layer.self_attn(normed, body.rotary_emb(x, places), attention_mask=torch.zeros(1, 1, 5, 5))[0]
    assert torch.allclose(encoder(passages)[0], passages.embeds[0] / RMS + body.norm(x)[0], atol=1e-4)
    whole = LMLayers(facts(tiny), layers=2, ratio=1, groups="equal", pool="mean").eval()
    whole.start_from(tiny.model)
    nn.init.eye_(whole.addition.weight)
    assert not torch.allclose(encoder(passages), whole(passages), atol=1e-2)


@pytest.mark.parametrize("pool", ["mean", "query", "halving"])
def test_attention_alone_has_no_mlp(tiny, pool):
    encoder = LMAttention(facts(tiny), layers=2, ratio=2, groups="equal", pool=pool)
    names = {name for name, _ in encoder.named_parameters()}
    assert not [name for name in names if ".mlp." in name]
    assert len([name for name in names if name.endswith("self_attn.q_proj.weight")]) == 2
    assert {name.split(".")[0] for name in encoder.copied()} == {"bodies" if pool == "halving" else "body"}
    assert {name.split(".")[0] for name in names - encoder.copied()} == {"gate", "addition"} | (
        {"pooling"} if pool == "query" else set()
    )


def test_each_halving_layer_has_the_weights_of_its_own_layer(tiny):
    encoder = halving(tiny, 2)
    for number, model in enumerate(encoder.models()):
        ours, theirs = model.layers[0].state_dict(), tiny.model.base_model.layers[number].state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(encoder.models()[-1].norm.weight, tiny.model.base_model.norm.weight)


def test_models_of_later_layers_keep_their_kinds(tiny):
    config = {**encoder_lm_config("lm_layers", tiny.model), "num_hidden_layers": 2}
    config |= {"model_type": "gemma3_text", "head_dim": 16, "sliding_window": 5}
    config["layer_types"] = ["sliding_attention", "full_attention"]
    assert first_layers(config, 1, first=1).config.layer_types == ["full_attention"]
    assert first_layers(config, 1).config.layer_types == ["sliding_attention"]
    model = first_layers(encoder_lm_config("lm_layers", tiny.model), 1, first=1)
    copy_weights(tiny.model, model, first=1)
    name = "self_attn.q_proj.weight"
    assert torch.equal(
        model.layers[0].get_parameter(name), tiny.model.base_model.layers[1].get_parameter(name)
    )  # fmt: skip


def test_models_without_a_list_of_layers_are_refused():
    config = GPT2Config(n_embd=64, n_layer=2, n_head=2, vocab_size=32).to_dict()
    lm = LMFacts(64, RMS, {**config, "num_hidden_layers": 2})
    dials = {"layers": 2, "ratio": 2, "groups": "equal"}
    with pytest.raises(
        UserError, match=r"GPT2Model: has no list `layers`.*encoder=lm_attention; use encoder=lm_layers"
    ):
        LMAttention(lm, pool="mean", **dials)
    with pytest.raises(UserError, match=r"GPT2Model: has no list `layers`.*pool=halving; use pool=mean"):
        LMLayers(lm, pool="halving", **dials)
    other = GPTNeoXConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=32).to_dict()
    assert LMAttention(LMFacts(64, RMS, other), pool="mean", **dials).positions(8) == 4
