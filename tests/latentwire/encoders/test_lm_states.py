"""The encoder over states of the frozen LM: its states, what it trains, and its cache."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from latentwire.encoders.base import LMFacts, Passages, make_passages
from latentwire.encoders.checkpoint import load_latents, save_latents
from latentwire.encoders.lm_states import LMStates
from latentwire.encoders.pipeline import Latents, LatentSpec
from latentwire.encoders.registry import encoder_lm_config
from latentwire.harness.errors import UserError
from latentwire.lm.vocabulary import Vocabulary

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.float_path]

IDS = {"a": [5, 9, 2, 7, 11, 30, 31], "b": [8, 8, 3], "c": [40, 41, 42, 43]}
HIDDEN = "latentwire.encoders.lm_states"


def states_of(tiny, every: int = 1, ratio: int = 1, dtype: torch.dtype = torch.float32, **dials: object) -> LMStates:
    """Return an encoder whose latents are the tokens plus the gated states."""
    lm = LMFacts(64, 0.3, encoder_lm_config("lm_states", tiny.model), dtype)
    encoder = LMStates(lm, every=every, ratio=ratio, **{"groups": "equal", "pool": "mean", **dials})
    encoder.start_from(tiny.model)
    nn.init.eye_(encoder.addition.weight)
    return encoder.eval()


def read(tiny, *names: str) -> Passages:
    return make_passages(list(names), [tiny.embed(torch.tensor(IDS[name])) for name in names])


def reads_of(encoder: LMStates) -> list[int]:
    """Return a list that gets the length of each passage that the frozen layers read from now on."""
    lengths: list[int] = []
    encoder.body.layers[0].register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    return lengths


def gated_by(encoder: LMStates, passages: Passages) -> Tensor:
    """Return the states after the gates, (B, T, D)."""
    seen: list[Tensor] = []
    hook = encoder.mix.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    encoder(passages)
    hook.remove()
    return seen[0]


@torch.no_grad()
@pytest.mark.parametrize("every", [1, 2])
def test_states_are_the_lms_own_of_equal_length(tiny, every):
    """At first the depths have equal weights, and the layers after them add nothing."""
    encoder, passages = states_of(tiny, every), read(tiny, "a", "b")
    z = encoder(passages)
    for row, name in enumerate("ab"):
        depths = tiny.model(input_ids=torch.tensor([IDS[name]]), output_hidden_states=True).hidden_states[1:]
        chosen = torch.stack(depths[::every])[:, 0]  # (S, T, D)
        expected = (chosen / chosen.square().mean(dim=-1, keepdim=True).sqrt()).mean(dim=0)
        tokens = passages.embeds[row, : len(IDS[name])] / 0.3
        assert torch.allclose(z[row, : len(expected)], tokens + expected, atol=1e-3)
    assert len(encoder.gates) == len(chosen) == 2 // every


@torch.no_grad()
def test_gates_choose_a_depth_for_each_dimension(tiny):
    encoder, passages = states_of(tiny), read(tiny, "b")
    first, last = torch.stack(tiny.model(input_ids=torch.tensor([IDS["b"]]), output_hidden_states=True)
                              .hidden_states[1:])[:, 0]  # fmt: skip
    encoder.gates[0, :32], encoder.gates[1, 32:] = 50.0, 50.0
    found = gated_by(encoder, passages)[0]
    assert torch.allclose(found[:, :32], (first / first.square().mean(-1, keepdim=True).sqrt())[:, :32], atol=1e-3)
    assert torch.allclose(found[:, 32:], (last / last.square().mean(-1, keepdim=True).sqrt())[:, 32:], atol=1e-3)


@torch.no_grad()
def test_positions_see_each_other_but_no_padding(tiny):
    encoder = states_of(tiny, ratio=2)
    nn.init.eye_(encoder.transport.self_attn.out_proj.weight)
    z, alone = encoder(read(tiny, "a", "b")), encoder(read(tiny, "b"))[0]
    assert torch.allclose(z[1, :2], alone, atol=1e-4)
    plain = states_of(tiny, ratio=2)(read(tiny, "b"))[0]
    assert not torch.allclose(alone, plain, atol=1e-2)


def test_only_what_follows_the_frozen_layers_learns(tiny):
    encoder, passages = states_of(tiny).train(), read(tiny, "a", "b")
    before = {name: own.clone() for name, own in encoder.state_dict().items()}
    trained = [own for own in encoder.parameters() if own.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        encoder(passages).square().sum().backward()
        optimizer.step()
    assert float(encoder.gates.grad.norm()) > 0
    assert all(own.grad is None and not own.requires_grad for own in encoder.body.parameters())
    changed = {name.split(".")[0] for name, own in encoder.state_dict().items() if not torch.equal(own, before[name])}
    assert changed == {"gates", "gate", "addition", "mix", "transport"}
    assert encoder.copied() == set()


@torch.no_grad()
def test_training_reads_each_passage_once(tiny):
    encoder = states_of(tiny).train()
    lengths = reads_of(encoder)
    first = encoder(read(tiny, "a", "b"))
    again = encoder(read(tiny, "b", "c", "a"))
    assert lengths == [7, 3, 4]
    assert torch.allclose(again[[2, 0]], first, atol=1e-5)
    fresh = states_of(tiny)
    fresh.load_state_dict(encoder.state_dict())
    assert torch.allclose(fresh(read(tiny, "b", "c", "a")), encoder.eval()(read(tiny, "b", "c", "a")), atol=1e-6)


@torch.no_grad()
def test_states_do_not_depend_on_the_other_passages_of_a_batch(tiny):
    """Bit for bit, because a resumed run reads passages in other batches than the undisturbed one."""
    together, alone = gated_by(states_of(tiny), read(tiny, "a", "b", "c")), gated_by(states_of(tiny), read(tiny, "b"))
    assert torch.equal(together[1, :3], alone[0])


@torch.no_grad()
def test_evaluation_keeps_no_states(tiny):
    encoder = states_of(tiny)
    lengths = reads_of(encoder)
    for _ in range(2):
        encoder(read(tiny, "b"))
    assert lengths == [3, 3]


@torch.no_grad()
def test_the_cache_is_bounded(tiny, monkeypatch):
    monkeypatch.setattr(f"{HIDDEN}.CACHE_BYTES", 1)
    encoder = states_of(tiny).train()
    lengths = reads_of(encoder)
    for _ in range(2):
        encoder(read(tiny, "a", "b"))
    assert lengths == [7, 3, 3]  # only the first passage is kept


@torch.no_grad()
def test_bfloat16_keeps_the_rotary_frequencies(tiny):
    """Rounded frequencies would turn late positions, and the states would not be the LM's."""
    exact = gated_by(states_of(tiny), read(tiny, "a"))
    encoder = states_of(tiny, dtype=torch.bfloat16)
    found = gated_by(encoder, read(tiny, "a"))
    assert {own.dtype for own in encoder.body.parameters()} == {torch.bfloat16}
    assert torch.equal(encoder.body.rotary_emb.inv_freq, tiny.model.base_model.rotary_emb.inv_freq)
    assert found.dtype == torch.float32
    assert torch.allclose(found, exact, atol=0.1)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_frozen_layers_compute_as_the_lm_does(tiny, tmp_path, dtype):
    """So does an encoder that was loaded for an LM of another dtype than in its training."""
    given, config = tiny.token_embeddings(), encoder_lm_config("lm_states", tiny.model)
    dials = {"every": 1, "ratio": 2, "groups": "equal", "pool": "mean"}
    trained = Latents(LatentSpec("lm_states", dials, 8, "baseline", {}, {}, "tiny", config), Vocabulary(given))
    save_latents(trained, tmp_path, {"trained_on": []})
    latents = load_latents(str(tmp_path), Vocabulary(given.to(dtype)))
    seen: list[torch.dtype] = []
    latents.encoder.body.layers[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    assert latents(read(tiny, "a"))[0].dtype == torch.float32
    assert seen == [dtype]


def test_the_distance_of_layers_is_within_the_lm(tiny):
    for every in (0, 3):
        with pytest.raises(UserError, match=f"every={every}: must be between 1 and the LM's 2 layers"):
            states_of(tiny, every)
    with pytest.raises(UserError, match="pool=halving: unknown; use one of mean, query"):
        states_of(tiny, pool="halving")
    assert states_of(tiny, markers=1, ratio=2).positions(7) == 4
