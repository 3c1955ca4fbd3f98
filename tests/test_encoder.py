"""The encoders: how many positions, what hangs on what, where they start."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from latentwire.encoder import (
    Adapter,
    Bottleneck,
    ByteEncoder,
    LMLayers,
    QueryPooling,
    build_encoder,
    group_bounds,
    group_means,
    make_passages,
    pooling_matrix,
    sinusoids,
)
from latentwire.harness.errors import UserError
from latentwire.train_latent import _lm_config

TEXTS = ["The ferry left at noon.", "A kettle."]


@pytest.fixture(autouse=True)
def seeded(one_thread):
    torch.manual_seed(0)


def embeds_of(tiny, text: str) -> torch.Tensor:
    return tiny.embed(torch.tensor(tiny.tokenizer(text)["input_ids"]))


@pytest.fixture
def passages(tiny):
    return make_passages(TEXTS, [embeds_of(tiny, text) for text in TEXTS])


def lm_layers(tiny, ratio: int = 2, pool: str = "mean", layers: int = 1) -> LMLayers:
    encoder = LMLayers(64, 0.3, _lm_config(tiny), layers=layers, ratio=ratio, pool=pool)
    encoder.copy_from(tiny.model)
    return encoder


def test_groups_are_of_nearly_equal_size_and_in_order():
    assert group_bounds(5, 2) == [(0, 2), (2, 5)]
    assert group_bounds(6, 3) == [(0, 2), (2, 4), (4, 6)]
    assert group_bounds(3, 3) == [(0, 1), (1, 2), (2, 3)]
    assert group_bounds(2, 4) == [(0, 1), (0, 1), (1, 2), (1, 2)]


def test_group_means_by_hand():
    x = torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 4.0]])
    assert group_means(x, 2).tolist() == [[1.0, 0.0], [4.0, 3.0]]
    assert group_means(x, 3).tolist() == x.tolist()


def test_the_pooling_matrix_leaves_padding_out():
    matrix = pooling_matrix([4, 2], [2, 1])
    assert matrix.tolist() == [[[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]], [[0.5, 0.5, 0, 0], [0, 0, 0, 0]]]


def test_passages_are_padded_on_the_right(tiny, passages):
    assert passages.lengths == [len(embeds_of(tiny, text)) for text in TEXTS]
    assert passages.mask.sum(dim=-1).tolist() == passages.lengths
    assert not passages.embeds[~passages.mask].any()


def test_an_empty_passage_is_refused():
    with pytest.raises(UserError, match="empty passage"):
        make_passages(["a", ""], [torch.ones(1, 4), torch.ones(0, 4)])


def test_the_bottleneck_keeps_to_its_position(passages):
    encoder = Bottleneck(64, 0.3, d_z=5)
    z = encoder(passages)
    assert z.shape == (2, max(passages.lengths), 5)
    other = passages.embeds.clone()
    other[0, 2] += 1
    changed = (encoder(type(passages)(TEXTS, passages.lengths, other)) != z).any(dim=-1)
    assert changed.nonzero().tolist() == [[0, 2]]
    assert torch.allclose(z[1, 0], encoder.down.weight @ (passages.embeds[1, 0] / 0.3) + encoder.down.bias, atol=1e-5)
    assert encoder.positions(7) == 7


def test_lm_layers_start_as_the_lms_own(tiny):
    encoder = lm_layers(tiny)
    own = dict(encoder.body.named_parameters())
    assert own
    assert not any("embed_tokens" in name for name in own)
    assert {name.split(".")[1] for name in own if name.startswith("layers.")} == {"0"}
    for name, parameter in own.items():
        assert torch.equal(parameter, tiny.model.base_model.get_parameter(name))
        assert parameter.requires_grad


def test_lm_layers_start_as_the_tokens_themselves_and_learn_from_there(tiny, passages):
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


def test_query_pooling_starts_as_the_mean_and_hears_the_passage(tiny, passages):
    mean, query = lm_layers(tiny).eval(), lm_layers(tiny, pool="query").eval()
    assert torch.equal(mean(passages), query(passages))
    pooling = QueryPooling(8)
    nn.init.eye_(pooling.attention.out_proj.weight)
    hidden, mask = torch.randn(1, 4, 8), torch.tensor([[True, True, True, False]])
    asked = pooling(hidden[:, :2], hidden, mask)
    moved = hidden.clone()
    moved[0, 3, 0] += 1
    assert torch.equal(pooling(hidden[:, :2], moved, mask), asked)  # padding is not heard
    moved[0, 2, 0] += 1
    assert not torch.allclose(pooling(hidden[:, :2], moved, mask), asked)


def test_a_ratio_that_leaves_nothing_is_refused(tiny):
    encoder = lm_layers(tiny, ratio=8)
    assert encoder.positions(8) == 1
    said = "ratio=8: leaves nothing of a passage of 7 tokens; use an encoder of ratio=7 or less"
    with pytest.raises(UserError, match=said):
        encoder.positions(7)


def test_bytes_become_latent_len_positions_whatever_the_text(passages):
    encoder = ByteEncoder(64, 0.3, latent_len=3, byte_width=16, byte_layers=1).eval()
    z = encoder(passages)
    assert z.shape == (2, 3, 16)
    assert encoder.positions(1) == encoder.positions(100) == 3
    alone = encoder(make_passages(TEXTS[1:], [passages.embeds[1, :2]]))
    assert torch.allclose(z[1], alone[0], atol=1e-5)  # neither padding nor the tokens play a part
    other = encoder(make_passages(["A kettlf.", "A kettle. "], [passages.embeds[0, :2]] * 2))
    assert not torch.allclose(z[1], other[0], atol=1e-4)
    assert not torch.allclose(z[1], other[1], atol=1e-4)


def test_positions_differ_and_their_first_is_known():
    table = sinusoids(4, 6)
    assert table.shape == (4, 6)
    assert torch.allclose(table[0], torch.tensor([0.0, 0, 0, 1, 1, 1]))
    assert table[3, 0] == pytest.approx(0.14112, abs=1e-4)  # sin 3
    assert table[3, 1] == pytest.approx(0.13880, abs=1e-4)  # sin(3 / 10000^(2/6))


def test_the_adapter_ends_in_a_layer_norm():
    adapter = Adapter(5, 64, 16)
    y = adapter(100 * torch.randn(3, 5) + 7)
    assert torch.allclose(y.mean(dim=-1), torch.zeros(3), atol=1e-5)
    assert torch.allclose(y.square().mean(dim=-1), torch.ones(3), atol=1e-3)
    same = Adapter(64, 64, 16)
    z = torch.randn(3, 64)
    assert torch.allclose(same(z), nn.functional.layer_norm(z, (64,)), atol=1e-6)  # z as wide as the LM: as it is
    nn.init.zeros_(adapter.line.weight)  # both ways lead through
    assert not torch.allclose(adapter(torch.randn(1, 5)), adapter(torch.randn(1, 5)))


@pytest.mark.parametrize(
    ("name", "dials", "message"),
    [
        ("pca", {}, "encoder=pca: unknown; use one of bottleneck, lm_layers, byte"),
        ("bottleneck", {"d_z": 0}, "d_z=0: must be at least 1"),
        ("bottleneck", {"d_z": 4, "ratio": 2}, "ratio=2: bottleneck has no such dial"),
        ("byte", {"latent_len": 0, "byte_width": 16, "byte_layers": 1}, "latent_len=0"),
        ("byte", {"latent_len": 1, "byte_width": 12, "byte_layers": 1}, "byte_width=12: must be a multiple of 8"),
        ("byte", {"latent_len": 1, "byte_width": 16, "byte_layers": 0}, "byte_layers=0"),
        ("lm_layers", {"layers": 3, "ratio": 2, "pool": "mean"}, "layers=3: must be between 1 and the LM's 2 layers"),
        ("lm_layers", {"layers": 1, "ratio": 0, "pool": "mean"}, "ratio=0"),
        ("lm_layers", {"layers": 1, "ratio": 2, "pool": "max"}, "pool=max: unknown; use one of mean, query"),
    ],
)
def test_what_is_wrong_with_a_dial_is_said(tiny, name, dials, message):
    with pytest.raises(UserError, match=message):
        build_encoder(name, dials, 64, 0.3, _lm_config(tiny))


def test_an_adapter_of_no_width_is_refused():
    with pytest.raises(UserError, match="adapter_hidden=0"):
        Adapter(5, 64, 0)
