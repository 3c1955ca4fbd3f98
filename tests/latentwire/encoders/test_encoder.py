"""The encoders: numbers of latents, dependence of each latent on its tokens, and initial values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Gemma3TextConfig

from latentwire.encoders.base import Adapter, LMFacts, make_passages, sinusoids
from latentwire.encoders.bottleneck import Bottleneck
from latentwire.encoders.byte import ByteEncoder
from latentwire.encoders.grouping import FORMAT, group_bounds, group_means, information, word_begins
from latentwire.encoders.lm_layers import LMLayers
from latentwire.encoders.pooled import QueryPooling
from latentwire.encoders.registry import ENCODERS, build_encoder, encoder_identity, encoder_lm_config
from latentwire.harness.errors import UserError
from latentwire.lm.models import LanguageModel

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["The ferry left at noon.", "A kettle."]
LAYERS = {"layers": 1, "ratio": 2, "groups": "equal", "pool": "mean"}


def embeds_of(tiny, text: str) -> torch.Tensor:
    return tiny.embed(torch.tensor(tiny.tokenizer(text)["input_ids"]))


@pytest.fixture
def passages(tiny):
    ids = [tiny.tokenizer(text)["input_ids"] for text in TEXTS]
    return make_passages(TEXTS, [embeds_of(tiny, text) for text in TEXTS], ids)


def facts(lm: LanguageModel, width: int = 64) -> LMFacts:
    return LMFacts(width, 0.3, encoder_lm_config("lm_layers", lm.model))


def lm_layers(tiny, ratio: int = 2, pool: str = "mean", layers: int = 1, groups: str = "equal") -> LMLayers:
    encoder = LMLayers(facts(tiny), layers=layers, ratio=ratio, groups=groups, pool=pool)
    encoder.start_from(tiny.model)
    return encoder


def test_passages_are_padded_on_the_right(tiny, passages):
    assert passages.lengths == [len(embeds_of(tiny, text)) for text in TEXTS]
    assert passages.mask.sum(dim=-1).tolist() == passages.lengths
    assert not passages.embeds[~passages.mask].any()


def test_an_empty_passage_is_refused():
    with pytest.raises(UserError, match="empty passage"):
        make_passages(["a", ""], [torch.ones(1, 4), torch.ones(0, 4)])


def test_the_bottleneck_keeps_to_its_position(passages):
    encoder = Bottleneck(LMFacts(64, 0.3), d_z=5)
    z = encoder(passages)
    assert z.shape == (2, max(passages.lengths), 5)
    other = passages.embeds.clone()
    other[0, 2] += 1
    changed = (encoder(type(passages)(TEXTS, passages.lengths, other)) != z).any(dim=-1)
    assert changed.nonzero().tolist() == [[0, 2]]
    assert torch.allclose(z[1, 0], encoder.down.weight @ (passages.embeds[1, 0] / 0.3) + encoder.down.bias, atol=1e-5)
    assert encoder.positions(7) == 7


def test_lm_layers_start_with_the_weights_of_the_lm(tiny):
    encoder = lm_layers(tiny)
    own = dict(encoder.body.named_parameters())
    assert own
    assert not any("embed_tokens" in name for name in own)
    assert {name.split(".")[1] for name in own if name.startswith("layers.")} == {"0"}
    for name, parameter in own.items():
        assert torch.equal(parameter, tiny.model.base_model.get_parameter(name))
        assert parameter.requires_grad


def test_lm_layers_start_as_the_identity_on_tokens(tiny, passages):
    """The gate scales the tokens up to twice, and the addition adds to them."""
    encoder = lm_layers(tiny, ratio=1).eval()
    tokens = passages.lengths[0]
    assert torch.allclose(encoder(passages)[0, :tokens], passages.embeds[0, :tokens] / 0.3, atol=1e-5)
    nn.init.constant_(encoder.gate.bias, 50.0)  # a gate is at most 2
    doubled = encoder(passages)[0, :tokens]
    assert torch.allclose(doubled, 2 * passages.embeds[0, :tokens] / 0.3, atol=1e-4)
    nn.init.ones_(encoder.addition.bias)
    assert torch.allclose(encoder(passages)[0, :tokens], doubled + 1, atol=1e-4)


def test_lm_layers_attend_in_both_directions_and_not_to_padding(tiny, passages):
    encoder = lm_layers(tiny, ratio=1).eval()
    nn.init.eye_(encoder.addition.weight)
    z = encoder(passages)
    alone = encoder(make_passages(TEXTS[1:], [passages.embeds[1, : passages.lengths[1]]]))
    assert torch.allclose(z[1, : passages.lengths[1]], alone[0], atol=1e-4)
    other = passages.embeds.clone()
    other[0, passages.lengths[0] - 1] += 1
    assert not torch.allclose(encoder(type(passages)(TEXTS, passages.lengths, other))[0, 0], z[0, 0], atol=1e-4)


def test_lm_layers_pool_means_of_groups(tiny, passages):
    whole, half = lm_layers(tiny, ratio=1).eval(), lm_layers(tiny, ratio=2).eval()
    for encoder in (whole, half):
        nn.init.eye_(encoder.addition.weight)
    tokens = passages.lengths[0]
    expected = group_means(whole(passages)[0, :tokens], half.positions(tokens))
    assert half.positions(tokens) == -(-tokens // 2)
    assert torch.allclose(half(passages)[0, : half.positions(tokens)], expected, atol=1e-4)


def test_over_one_token_the_layers_equal_the_lm(tiny):
    """With one token, attention in both directions equals causal attention."""
    encoder = lm_layers(tiny, ratio=1, layers=2).eval()
    nn.init.constant_(encoder.gate.bias, -50.0)
    nn.init.eye_(encoder.addition.weight)
    z = encoder(make_passages(["x"], [tiny.embed(torch.tensor([5]))]))[0]
    assert torch.allclose(z, tiny.model.base_model(input_ids=torch.tensor([[5]])).last_hidden_state[0], atol=1e-4)


def test_the_first_layers_of_a_model_with_two_layer_types():
    config = Gemma3TextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, sliding_window=5, pad_token_id=0,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )  # fmt: skip
    lm = LanguageModel(AutoModelForCausalLM.from_config(config), None)  # type: ignore[arg-type]
    encoder = LMLayers(facts(lm, 32), layers=2, ratio=1, groups="equal", pool="mean")
    encoder.start_from(lm.model)
    assert encoder(make_passages(["x"], [torch.randn(7, 32)])).shape == (1, 7, 32)


def words(tiny, said: dict[int, float], begin: set[int], ratio: int = 2) -> LMLayers:
    """Return an encoder with this information for tokens of the first text, and with these beginnings of words."""
    encoder = lm_layers(tiny, ratio=ratio, groups="words").eval()
    ids = tiny.tokenizer(TEXTS[0])["input_ids"]
    assert len(set(ids)) == len(ids)
    for place, worth in said.items():
        encoder.information[ids[place]] = worth
    for place, token in enumerate(ids):
        encoder.begins[token] = place in begin
    return encoder


def test_word_groups_start_near_their_head_token(tiny, passages):
    """The other tokens of the group are added with a small weight."""
    tokens = passages.lengths[0]
    keep = list(range(tokens - -(-tokens // 2), tokens))  # the last half has most information
    encoder = words(tiny, dict.fromkeys(keep, 5.0), set(range(tokens)))
    first = make_passages(TEXTS[:1], [passages.embeds[0, :tokens]], passages.ids[:1])
    units = first.embeds[0] / 0.3
    z = encoder(first)[0]
    little = 2 / (1 + math.exp(2.0))
    assert z.shape[0] == encoder.positions(tokens) == len(keep)
    assert torch.allclose(z[1:], units[keep[1:]], atol=1e-5)
    assert torch.allclose(z[0], units[keep[0]] + little * units[: keep[0]].sum(dim=0), atol=1e-4)
    assert torch.equal(encoder.stands_for(first)[0], first.embeds[0, keep])
    nn.init.constant_(encoder.gate.bias, 50.0)
    assert torch.allclose(encoder(first)[0, 0], 2 * units[: keep[0] + 1].sum(dim=0), atol=1e-3)
    nn.init.constant_(encoder.gate.bias, -50.0)
    nn.init.eye_(encoder.addition.weight)
    hidden = lm_layers(tiny, ratio=1).eval()
    nn.init.constant_(hidden.gate.bias, -50.0)
    nn.init.eye_(hidden.addition.weight)
    heard = hidden(first)[0]
    assert torch.allclose(encoder(first)[0, 0], heard[: keep[0] + 1].mean(dim=0), atol=1e-4)


def test_whole_words_get_positions_first(tiny, passages):
    tokens = passages.lengths[0]
    said = {0: 9.0, 1: 1.0, **dict.fromkeys(range(2, tokens), 4.0)}
    encoder = words(tiny, said, {0, *range(2, tokens)}, ratio=tokens)  # one position; the first word has two tokens
    first = make_passages(TEXTS[:1], [passages.embeds[0, :tokens]], passages.ids[:1])
    assert torch.equal(encoder.stands_for(first)[0], first.embeds[0, 2:3])
    assert torch.equal(words(tiny, said, set(range(tokens)), ratio=tokens).stands_for(first)[0], first.embeds[0, :1])


def test_each_passage_has_its_own_word_groups(tiny, passages):
    encoder = lm_layers(tiny, groups="words").eval()
    encoder.learn(passages.ids, tiny.tokenizer)
    nn.init.eye_(encoder.addition.weight)
    both = encoder(passages)
    for place, (n, text) in enumerate(zip(passages.lengths, TEXTS, strict=True)):
        alone = encoder(make_passages([text], [passages.embeds[place, :n]], [passages.ids[place]]))[0]
        assert torch.allclose(both[place, : len(alone)], alone, atol=1e-4)


def test_word_statistics_are_learned_and_saved_as_buffers(tiny, passages):
    """With groups=equal the encoder has no such buffers."""
    encoder = lm_layers(tiny, groups="words")
    seen = passages.ids[1][0]
    encoder.learn([[seen], [seen], [seen], passages.ids[0]], tiny.tokenizer)
    assert float(encoder.information[seen]) < float(encoder.information[passages.ids[0][0]])
    assert encoder.begins.tolist() == word_begins(tiny.tokenizer, len(encoder.begins)).tolist()
    assert not encoder.begins.all()
    texts, begins = [[seen], *passages.ids], word_begins(tiny.tokenizer, len(encoder.begins))
    encoder.learn(texts, tiny.tokenizer)
    assert encoder.information.tolist() == information(texts, begins).tolist()
    assert encoder.information.tolist() != information(texts, torch.ones_like(begins)).tolist()  # words, not tokens
    assert {"information", "begins"} <= encoder.state_dict().keys()
    equal = lm_layers(tiny)
    equal.learn([[seen]], tiny.tokenizer)
    assert not {"information", "begins"} & equal.state_dict().keys()


def test_positions_stand_for_the_mean_of_their_tokens(tiny, passages):
    tokens = passages.lengths[0]
    found = lm_layers(tiny).stands_for(passages)[0]
    assert torch.allclose(found[: -(-tokens // 2)], group_means(passages.embeds[0, :tokens], -(-tokens // 2)))
    assert torch.equal(Bottleneck(LMFacts(64, 0.3), d_z=5).stands_for(passages), passages.embeds)
    few = ByteEncoder(LMFacts(64, 0.3), latent_len=2, byte_width=16, byte_layers=1).stands_for(passages)
    end = group_bounds(passages.lengths[1], 2)[0][1]
    assert torch.allclose(few[1, 0], passages.embeds[1, :end].mean(dim=0))


def test_query_pooling_starts_as_the_mean_and_ignores_padding(tiny, passages):
    mean, query = lm_layers(tiny).eval(), lm_layers(tiny, pool="query").eval()
    assert torch.equal(mean(passages), query(passages))
    pooling = QueryPooling(8)
    nn.init.eye_(pooling.attention.out_proj.weight)
    hidden, mask = torch.randn(1, 4, 8), torch.tensor([[True, True, True, False]])
    asked = pooling(hidden[:, :2], hidden, mask)
    moved = hidden.clone()
    moved[0, 3, 0] += 1
    assert torch.equal(pooling(hidden[:, :2], moved, mask), asked)  # padding is ignored
    moved[0, 2, 0] += 1
    assert not torch.allclose(pooling(hidden[:, :2], moved, mask), asked)


def test_a_query_attends_only_to_its_own_passage(tiny, passages):
    encoder = lm_layers(tiny, pool="query").eval()
    assert encoder.pooling is not None
    nn.init.eye_(encoder.addition.weight)
    nn.init.eye_(encoder.pooling.attention.out_proj.weight)
    alone = encoder(make_passages(TEXTS[1:], [passages.embeds[1, : passages.lengths[1]]]))[0]
    assert torch.allclose(encoder(passages)[1, : len(alone)], alone, atol=1e-4)


def test_a_ratio_that_leaves_nothing_is_refused(tiny):
    encoder = lm_layers(tiny, ratio=8)
    assert encoder.positions(8) == 1
    said = "ratio=8: more than the 7 tokens of a passage; use an encoder with ratio=7 or less"
    with pytest.raises(UserError, match=said):
        encoder.positions(7)


def test_each_text_becomes_latent_len_positions(passages):
    encoder = ByteEncoder(LMFacts(64, 0.3), latent_len=3, byte_width=16, byte_layers=1).eval()
    z = encoder(passages)
    assert z.shape == (2, 3, 16)
    assert encoder.positions(1) == encoder.positions(100) == 3
    alone = encoder(make_passages(TEXTS[1:], [passages.embeds[1, :2]]))
    assert torch.allclose(z[1], alone[0], atol=1e-5)  # neither padding nor tokens matter
    other = encoder(make_passages(["A kettlf.", "A kettle. "], [passages.embeds[0, :2]] * 2))
    assert not torch.allclose(z[1], other[0], atol=1e-4)
    assert not torch.allclose(z[1], other[1], atol=1e-4)
    turned = encoder(make_passages(["A ketlte."], [passages.embeds[1, :2]]))
    assert not torch.allclose(z[1], turned[0], atol=1e-4)  # the same bytes in another order


def test_positions_differ_and_their_first_is_known():
    table = sinusoids(4, 6)
    assert table.shape == (4, 6)
    assert torch.allclose(table[0], torch.tensor([0.0, 0, 0, 1, 1, 1]))
    assert table[3, 0] == pytest.approx(0.14112, abs=1e-4)  # sin 3
    assert table[3, 1] == pytest.approx(0.13880, abs=1e-4)  # sin(3 / 10000^(2/6))


def test_the_adapter_ends_in_a_layer_norm():
    adapter = Adapter(5, LMFacts(64, 0.3), 16, "norm")
    y = adapter(100 * torch.randn(3, 5) + 7)
    assert torch.allclose(y.mean(dim=-1), torch.zeros(3), atol=1e-5)
    assert torch.allclose(y.square().mean(dim=-1), torch.ones(3), atol=1e-3)
    same = Adapter(64, LMFacts(64, 0.3), 16, "norm")
    z = torch.randn(3, 64)
    assert torch.allclose(same(z), nn.functional.layer_norm(z, (64,)), atol=1e-6)  # z of the LM's width is unchanged
    nn.init.zeros_(adapter.line.weight)  # the input goes through both paths
    assert not torch.allclose(adapter(torch.randn(1, 5)), adapter(torch.randn(1, 5)))


def test_the_identity_of_an_encoder_names_its_grouping():
    """A change of the grouping by words trains other weights; the other encoders have no such version."""
    words = encoder_identity("lm_layers", {**LAYERS, "groups": "words"})
    assert words == {"name": "lm_layers", "dials": {**LAYERS, "groups": "words"}, "versions": {"words": FORMAT}}
    assert encoder_identity("lm_layers", LAYERS)["versions"] == {}
    assert encoder_identity("bottleneck", {"d_z": 4}) == {"name": "bottleneck", "dials": {"d_z": 4}, "versions": {}}


def test_only_encoders_that_need_it_get_the_lms_config(tiny):
    assert encoder_lm_config("lm_layers", tiny.model)["num_hidden_layers"] == 2
    assert encoder_lm_config("bottleneck", tiny.model) == encoder_lm_config("byte", tiny.model) == {}


def test_single_tokens_are_encoded_without_their_text(tiny):
    """An encoder that claims it gives each token the latent that it has in any passage."""
    x = embeds_of(tiny, TEXTS[0])
    encoder = build_encoder("bottleneck", {"d_z": 4}, LMFacts(64, 0.3))
    assert encoder.encodes_tokens
    assert torch.equal(encoder(make_passages([""], [x]))[:, :1], encoder(make_passages([TEXTS[0]], [x]))[:, :1])
    assert not any(ENCODERS[name].encodes_tokens for name in ("byte", "cut_text", "lm_layers"))


@pytest.mark.parametrize(
    ("name", "dials", "message"),
    [
        ("pca", {}, "encoder=pca: unknown; use one of bottleneck, byte, cut_text, lm_layers"),
        ("bottleneck", {"d_z": 0}, "d_z=0: must be at least 1"),
        ("bottleneck", {"d_z": 4, "ratio": 2}, "ratio=2: bottleneck has no such dial"),
        ("byte", {"latent_len": 0, "byte_width": 16, "byte_layers": 1}, "latent_len=0"),
        ("byte", {"latent_len": 1, "byte_width": 12, "byte_layers": 1}, "byte_width=12: must be a multiple of 8"),
        ("byte", {"latent_len": 1, "byte_width": 16, "byte_layers": 0}, "byte_layers=0"),
        ("lm_layers", {**LAYERS, "layers": 3}, "layers=3: must be between 1 and the LM's 2 layers"),
        ("lm_layers", {**LAYERS, "ratio": 0}, "ratio=0"),
        ("lm_layers", {**LAYERS, "pool": "max"}, "pool=max: unknown; use one of mean, query"),
        ("lm_layers", {**LAYERS, "groups": "halves"}, "groups=halves: unknown; use one of equal, words"),
    ],
)
def test_invalid_dials_are_named(tiny, name, dials, message):
    with pytest.raises(UserError, match=message):
        build_encoder(name, dials, facts(tiny))


def test_a_free_adapter_keeps_the_lengths_and_learns_their_scale():
    adapter, z = Adapter(64, LMFacts(64, 0.3), 16, "free"), torch.randn(3, 64)
    assert torch.allclose(adapter(z), 0.3 * z)  # starts at the RMS of the tokens
    assert torch.allclose(adapter(10 * z), 10 * adapter(z))
    adapter(z).square().sum().backward()
    assert adapter.log_scale.grad != 0


@pytest.mark.parametrize(
    ("hidden", "scale", "message"),
    [
        (0, "norm", "adapter_hidden=0: must be at least 1"),
        (4, "no", "adapter_scale=no: unknown; use one of norm, free"),
    ],
)
def test_an_adapter_without_width_or_scale_is_refused(hidden, scale, message):
    with pytest.raises(UserError, match=message):
        Adapter(5, LMFacts(64, 0.3), hidden, scale)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("z_width", None, "encoder=bottleneck d_z=4: has no z_width; set self.z_width in __init__"),
        ("z_width", 0, "z_width=0 is not a width"),
        ("positions", lambda tokens: tokens // 0, r"positions\(1\) raises ZeroDivisionError .*; change the dials"),
        ("positions", lambda tokens: tokens / 2, r"positions\(1\) is 0.5; it must return a whole number, at least 1"),
        ("positions", lambda tokens: 0, r"positions\(1\) is 0; it must"),
    ],
)
def test_an_encoder_without_valid_sizes_is_refused(monkeypatch, attribute, value, message):
    class Broken(Bottleneck):
        def __init__(self, lm, *, d_z: int):
            super().__init__(lm, d_z=d_z)
            setattr(self, attribute, value)

    monkeypatch.setitem(ENCODERS.things, "bottleneck", Broken)
    with pytest.raises(UserError, match=message):
        build_encoder("bottleneck", {"d_z": 4}, LMFacts(64, 0.3))
