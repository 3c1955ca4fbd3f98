"""The reader's logits equal the model's own; gradients reach the latents and leave the weights unchanged."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, MistralConfig, Qwen2Config

from latentwire.harness.errors import UserError
from latentwire.lm.decoding import encode_prefix
from latentwire.lm.models import LanguageModel, layers_of, load_model
from latentwire.lm.reader import Reader, ReaderBranch, ReaderRow, slides_window
from tests.helpers.models import model_spec
from tests.helpers.random import draws, shifted

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.float_path]

SHOTS = torch.tensor([5, 9, 2, 7])


@pytest.fixture
def reader(tiny):
    return Reader(tiny, encode_prefix(tiny, SHOTS))


def ids_of(*ids: int) -> torch.Tensor:
    return torch.tensor(ids)


@pytest.mark.parametrize("shots", [True, False])
def test_logits_equal_the_models_over_each_single_branch(tiny, shots):
    prefix = SHOTS if shots else SHOTS[:0]
    reader = Reader(tiny, encode_prefix(tiny, prefix))
    passages = [ids_of(11, 12, 13), ids_of(21, 22, 23, 24, 25)]
    branches = [
        (ReaderBranch((31, 32, 33), 2), ReaderBranch((34, 35), 2), ReaderBranch((36, 37, 38, 39), 1)),
        (ReaderBranch((41, 42), 1),),
    ]
    rows = [ReaderRow(tiny.embed(ids), own) for ids, own in zip(passages, branches, strict=True)]
    expected, targets = [], []
    for ids, own in zip(passages, branches, strict=True):
        for branch in own:
            whole = torch.cat([prefix, ids, ids_of(*branch.token_ids)])
            logits = tiny.model(input_ids=whole[None]).logits[0]
            expected.append(logits[len(whole) - branch.predicted - 1 : -1])
            targets += branch.token_ids[-branch.predicted :]
    assert torch.allclose(reader.logits(reader.states(rows)), torch.cat(expected), atol=1e-3)
    assert reader.targets(rows).tolist() == targets == [32, 33, 34, 35, 39, 42]


@torch.no_grad()
@pytest.mark.parametrize("shares", [True, False])
def test_layer_states_equal_the_models_hidden_states(tiny, reader, shares):
    """The layers come in the order of the call, and the final states are the last layer's after the norm."""
    assert reader.shares
    reader.shares = shares
    passages = [ids_of(11, 12, 13), ids_of(21, 22, 23, 24, 25)]
    branches = [(ReaderBranch((31, 32, 33), 3), ReaderBranch((34, 35), 1)), (ReaderBranch((41, 42), 2),)]
    rows = [ReaderRow(tiny.embed(ids), own) for ids, own in zip(passages, branches, strict=True)]
    last, first = [], []
    for ids, own in zip(passages, branches, strict=True):
        for branch in own:
            whole = torch.cat([SHOTS, ids, ids_of(*branch.token_ids)])
            hidden = tiny.model(input_ids=whole[None], output_hidden_states=True).hidden_states
            predicting = slice(len(whole) - branch.predicted - 1, -1)
            first.append(hidden[1][0, predicting])
            last.append(hidden[2][0, predicting])
    final, chosen = reader.layer_states(rows, [1, 0])
    assert torch.allclose(final, torch.cat(last), atol=1e-3)
    assert torch.allclose(chosen[1], torch.cat(first), atol=1e-3)
    assert torch.allclose(tiny.model.base_model.norm(chosen[0]), torch.cat(last), atol=1e-3)
    again, none = reader.layer_states(rows, [])
    assert torch.equal(again, reader.states(rows)) and none.shape == (0, 6, 64)


def test_a_model_without_a_list_of_layers_is_refused(tiny):
    model = copy.deepcopy(tiny.model)
    model.config.num_hidden_layers = 3  # the model has two
    with pytest.raises(UserError, match=r"LlamaForCausalLM: has no list of 3 layers, .*; choose another model="):
        layers_of(replace(tiny, model=model))


def test_the_lm_is_not_changed_and_gradients_reach_the_latents(tiny, reader):
    def digest() -> str:
        state = tiny.model.state_dict()
        return hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()

    before = digest()
    latents = tiny.embed(ids_of(11, 12, 13)).clone().requires_grad_()
    optimizer = torch.optim.SGD([latents], lr=0.1)
    row = ReaderRow(latents, (ReaderBranch((31, 32, 33), 1), ReaderBranch((34, 35), 1)))
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        logits = reader.logits(reader.states([row]))
        loss = torch.nn.functional.cross_entropy(logits, reader.targets([row]))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert digest() == before
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in tiny.model.parameters())


def test_gradients_equal_finite_differences(tiny, reader):
    base = tiny.embed(ids_of(11, 12)).double().float()
    direction = torch.randn(base.shape, generator=draws(0))

    def loss(x: torch.Tensor) -> torch.Tensor:
        row = ReaderRow(x, (ReaderBranch((31, 32), 1), ReaderBranch((33, 34), 1)))
        return torch.nn.functional.cross_entropy(reader.logits(reader.states([row])), reader.targets([row]))

    x = base.clone().requires_grad_()
    loss(x).backward()
    step = 2e-3
    slope = (loss(base + step * direction) - loss(base - step * direction)) / (2 * step)
    assert float((x.grad * direction).sum()) == pytest.approx(float(slope), rel=0.03)


def test_a_row_longer_than_the_context_is_refused(tiny, reader):
    with pytest.raises(UserError, match=r"4 tokens of shots .* 4098 positions, more than the model's 4096"):
        reader.states([ReaderRow(torch.zeros(4092, 64), (ReaderBranch((1, 2), 1),))])


SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 5, "pad_token_id": 0}  # fmt: skip
MIXED = ["sliding_attention", "full_attention"]


@pytest.mark.parametrize(
    "config",
    [
        Gemma3TextConfig(**SMALL, head_dim=16, layer_types=MIXED),
        Qwen2Config(**SMALL, use_sliding_window=True, layer_types=MIXED),
        MistralConfig(**SMALL),
    ],
    ids=lambda config: config.model_type,
)
def test_layers_with_a_window_attend_only_within_it(config):
    """Shots and rows are longer than the window; the expected logits come from the model's own masks."""
    torch.manual_seed(shifted(0))
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    lm = LanguageModel(model, None)  # type: ignore[arg-type]
    shots = torch.arange(1, 9)
    reader = Reader(lm, encode_prefix(lm, shots))
    assert reader.window == 5
    passages = [ids_of(11, 12, 13, 14, 15, 16, 17), ids_of(21, 22)]
    branches = [(ReaderBranch((31, 32, 33, 34), 3), ReaderBranch((35, 36), 2)), (ReaderBranch((41, 42, 43), 1),)]
    rows = [ReaderRow(lm.embed(ids), own) for ids, own in zip(passages, branches, strict=True)]
    expected = []
    for ids, own in zip(passages, branches, strict=True):
        for branch in own:
            whole = torch.cat([shots, ids, ids_of(*branch.token_ids)])
            expected.append(model(input_ids=whole[None]).logits[0, len(whole) - branch.predicted - 1 : -1])
    assert torch.allclose(reader.logits(reader.states(rows)), torch.cat(expected), atol=1e-4)
    reader.window = None  # a mask without a window gives other logits
    assert not torch.allclose(reader.logits(reader.states(rows)), torch.cat(expected), atol=1e-2)


def test_layers_of_another_kind_are_refused(tiny):
    model = copy.copy(tiny.model)
    model.config = copy.deepcopy(tiny.model.config)
    model.config.layer_types = ["full_attention", "chunked_attention"]
    with pytest.raises(
        UserError, match=r"LlamaForCausalLM: has layers of chunked_attention, .* choose another model=..., with"
    ):
        Reader(replace(tiny, model=model), encode_prefix(tiny, SHOTS))


def test_capped_logits_are_capped(tiny, reader):
    states = torch.randn(3, 64)
    plain = reader.logits(states)
    reader.cap = 2.0
    assert torch.allclose(reader.logits(states), 2 * torch.tanh(plain / 2))


def test_float32_latents_are_read_in_bfloat16():
    lm = load_model(model_spec("tiny_random"), torch.device("cpu"), torch.bfloat16)
    row = ReaderRow(torch.zeros(3, 64), (ReaderBranch((1, 2), 1),))
    assert Reader(lm, encode_prefix(lm, SHOTS)).states([row]).dtype == torch.bfloat16


@pytest.mark.parametrize("slides", [True, False])
def test_a_window_counts_only_if_the_model_uses_it(slides):
    """Some configs have a window, no layer types, and a separate switch for the window."""
    config = SimpleNamespace(sliding_window=5, use_sliding_window=slides, layer_types=None)
    assert slides_window(config) is slides
