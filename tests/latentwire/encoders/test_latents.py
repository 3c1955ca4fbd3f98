"""Encoder, adapter and transform as one module, and their folder on disk."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from latentwire.encoders.base import make_passages
from latentwire.encoders.checkpoint import about_latents, find_latents, load_latents, save_latents
from latentwire.encoders.pipeline import Latents, LatentSpec, straight_through
from latentwire.encoders.registry import encoder_lm_config
from latentwire.harness.errors import UserError
from latentwire.lm.vocabulary import Vocabulary, rms
from latentwire.transforms.registry import build_transform

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = LatentSpec("bottleneck", {"d_z": 4}, 8, "baseline", {}, {"tiny_random": {"version": 1}}, "tiny_random")


@pytest.fixture
def passages(tiny):
    ids = [[5, 6, 7, 8], [7, 8]]
    return make_passages(["a b", "c"], [tiny.embed(torch.tensor(own)) for own in ids], ids)


def test_latents_come_one_passage_at_a_time(vocabulary, passages):
    latents = Latents(SPEC, vocabulary)
    found = latents(passages)
    assert [x.shape for x in found] == [(4, 64), (2, 64)]
    assert torch.allclose(found[1], latents.adapter(latents.encoder(passages))[1, :2])


def test_the_transform_sees_each_passage_without_its_padding(vocabulary, passages):
    latents = Latents(replace(SPEC, transform="batch_distribution"), vocabulary)
    adapted = latents.adapter(latents.encoder(passages))
    assert torch.allclose(latents(passages)[1], latents.transform(adapted[1, :2]), atol=1e-6)


def test_straight_through_replaces_only_the_gradient(vocabulary):
    """The value comes from the transform, the gradient from the rescaled input."""
    anchor = build_transform("anchor_offset", {"eps": 0.1}, vocabulary)
    unit = float(vocabulary.mean_rms)
    x = (50 * torch.randn(3, 64)).requires_grad_()
    out = straight_through(anchor, x, unit, None)
    assert torch.allclose(out, anchor(x), atol=1e-6)
    weights = torch.randn(3, 64)
    (out * weights).sum().backward()
    other = x.detach().clone().requires_grad_()
    ((other * (unit / rms(other))[..., None]) * weights).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, other.grad)
    assert float(x.grad.norm()) > 0


def test_straight_through_applies_to_discrete_transforms(vocabulary, passages):
    latents = Latents(replace(SPEC, transform="anchor_offset", transform_dials={"eps": 0.0}), vocabulary)
    sum(x.square().sum() for x in latents(passages)).backward()
    assert all(float(p.grad.norm()) > 0 for p in latents.encoder.parameters())  # without it, eps=0 has no gradient
    rms_matched = Latents(replace(SPEC, transform="rms_matching", transform_dials={"target_scale": 1.0}), vocabulary)
    found = rms_matched(passages)[0]
    assert torch.allclose(rms(found), torch.full((4,), float(vocabulary.mean_rms)), rtol=1e-4)


def test_codes_of_a_codebook_are_learned_and_saved(tiny, vocabulary, passages, tmp_path):
    spec = replace(SPEC, transform="soft_codebook", transform_dials={"codebook_size": 8, "tau": 1.0})
    latents = Latents(spec, vocabulary)
    sum(x.square().sum() for x in latents(passages)).backward()
    assert float(latents.transform.codes.grad.norm()) > 0
    with torch.no_grad():
        latents.transform.codes.add_(1.0)
    save_latents(latents, tmp_path, {"trained_on": []})
    assert torch.equal(load_latents(str(tmp_path), vocabulary).transform.codes, latents.transform.codes)
    drawn_otherwise = Vocabulary(tiny.token_embeddings(), seed=7)  # another k-means start than the saved codes had
    assert build_transform("soft_codebook", spec.transform_dials, drawn_otherwise).kappa != latents.transform.kappa
    loaded = load_latents(str(tmp_path), drawn_otherwise)
    assert all(torch.equal(a, b) for a, b in zip(loaded(passages), latents.eval()(passages), strict=True))


def test_a_transform_that_ignores_its_input_is_refused(vocabulary):
    with pytest.raises(UserError, match="random_interpolation: its result does not depend on the encoder"):
        Latents(replace(SPEC, transform="random_interpolation", transform_dials={"k": 3}), vocabulary)


def test_each_step_of_a_chain_is_checked(vocabulary, passages):
    chained = Latents(
        replace(SPEC, transform="chain", transform_dials={"steps": "rms_scale1.0+anchor_eps0.0"}), vocabulary
    )
    sum(x.square().sum() for x in chained(passages)).backward()
    assert all(float(p.grad.norm()) > 0 for p in chained.encoder.parameters())
    with pytest.raises(UserError, match="does not depend on the encoder"):
        Latents(replace(SPEC, transform="chain", transform_dials={"steps": "rms_scale1.0+random_k3"}), vocabulary)


@pytest.mark.parametrize("name", ["whitening", "auto"])
def test_transforms_fitted_to_a_source_are_refused(vocabulary, name):
    with pytest.raises(UserError, match=f"embed_transform={name}: is fitted to a finished source"):
        Latents(replace(SPEC, transform=name), vocabulary)


def test_a_wrong_size_of_the_lm_is_named(tiny, vocabulary, tmp_path):
    dials = {"layers": 1, "ratio": 2, "groups": "words", "pool": "mean"}
    config = encoder_lm_config("lm_layers", tiny.model)
    save_latents(
        Latents(replace(SPEC, encoder="lm_layers", encoder_dials=dials, lm_config=config), vocabulary),
        tmp_path, {"trained_on": []},
    )  # fmt: skip
    about = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**about, "lm_config": {**config, "num_hidden_layers": None}}))
    with pytest.raises(UserError, match=r"num_hidden_layers=None of the LM's config is not a whole number.*; train"):
        load_latents(str(tmp_path), vocabulary)


POOLED = {"ratio": 2, "groups": "words", "pool": "query"}
HALVING = {"ratio": 2, "groups": "equal", "pool": "halving"}


@pytest.mark.parametrize(
    ("encoder", "dials"),
    [
        ("bottleneck", {"d_z": 4}),
        ("byte", {"latent_len": 3, "byte_width": 16, "byte_layers": 1}),
        ("lm_layers", {**POOLED, "layers": 1}),
        ("lm_layers", {**POOLED, "layers": 1, "ratio": 1, "markers": 1}),
        ("lm_layers", {**HALVING, "layers": 2}),
        ("lm_attention", {**POOLED, "layers": 2}),
        ("lm_attention", {**HALVING, "layers": 1}),
        ("lm_states", {**POOLED, "every": 1}),
    ],
)
def test_saved_latents_equal_the_loaded_ones(tiny, vocabulary, passages, tmp_path, encoder, dials):
    config = encoder_lm_config(encoder, tiny.model)
    assert bool(config) == encoder.startswith("lm_")
    latents = Latents(replace(SPEC, encoder=encoder, encoder_dials=dials, lm_config=config), vocabulary).eval()
    latents.encoder.start_from(tiny.model)
    latents.encoder.learn([[5, 5, 7]], tiny.tokenizer)
    save_latents(latents, tmp_path / "encoder", {"trained_on": ["x"]})
    state = torch.get_rng_state()
    loaded = load_latents(str(tmp_path), vocabulary)
    assert torch.equal(torch.get_rng_state(), state)
    for ours, theirs in zip(latents(passages), loaded(passages), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)  # torch uses faster code when no gradient is needed
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert not loaded.training
    assert about_latents(str(tmp_path))["trained_on"] == ["x"]


def test_folders_from_before_markers_and_scales_still_load(tiny, vocabulary, passages, tmp_path):
    """Their config.json has neither the dial `markers` nor `adapter_scale`."""
    config = encoder_lm_config("lm_layers", tiny.model)
    dials = {**POOLED, "layers": 1, "markers": 0}
    spec = replace(SPEC, encoder="lm_layers", encoder_dials=dials, lm_config=config, adapter_scale="norm")
    latents = Latents(spec, vocabulary).eval()
    save_latents(latents, tmp_path, {"trained_on": []})
    about = json.loads((tmp_path / "config.json").read_text())
    del about["encoder_dials"]["markers"], about["adapter_scale"]
    (tmp_path / "config.json").write_text(json.dumps(about))
    for ours, theirs in zip(latents(passages), load_latents(str(tmp_path), vocabulary)(passages), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_checkpoint_without_a_dial_is_refused(vocabulary, tmp_path):
    """The message says to train the encoder again."""
    save_latents(Latents(SPEC, vocabulary), tmp_path, {"trained_on": []})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "encoder_dials": {}}))
    with pytest.raises(UserError, match=r"does not load as the encoder .*bottleneck needs d_z.*; train it again"):
        load_latents(str(tmp_path), vocabulary)


def test_another_lms_checkpoint_is_refused(vocabulary, tmp_path):
    save_latents(Latents(SPEC, vocabulary), tmp_path, {"trained_on": []})
    assert about_latents(str(tmp_path), SPEC.lm)["encoder"] == "bottleneck"
    with pytest.raises(UserError, match="was trained for the model tiny_random, not for this one"):
        about_latents(str(tmp_path), {"tiny_random": {"version": 2}})


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="checkpoint=FOLDER"):
        find_latents("")
    with pytest.raises(UserError, match="checkpoint=12: no such folder"):
        find_latents(12)  # as YAML reads it
    with pytest.raises(UserError, match="nowhere: no such folder"):
        find_latents(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"holds no trained encoder \(encoder/model.safetensors\)"):
        find_latents(str(tmp_path))


def test_a_damaged_checkpoint_is_refused(vocabulary, tmp_path):
    save_latents(Latents(SPEC, vocabulary), tmp_path, {"trained_on": []})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "encoder_dials": {"d_z": 5}}))
    with pytest.raises(UserError, match="does not load as the encoder that its config"):
        load_latents(str(tmp_path), vocabulary)
    (tmp_path / "config.json").write_text(json.dumps({**config, "encoder_dials": {"d_z": "x"}}))
    with pytest.raises(UserError, match="does not load as the encoder that its config"):
        load_latents(str(tmp_path), vocabulary)
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "adapter_hidden"}))
    with pytest.raises(UserError, match="does not describe an encoder of format 1"):
        load_latents(str(tmp_path), vocabulary)
    (tmp_path / "config.json").write_text(json.dumps({**config, "format": 99}))
    with pytest.raises(UserError, match="does not describe an encoder of format 1"):
        load_latents(str(tmp_path), vocabulary)
    (tmp_path / "config.json").write_text(json.dumps({**config, "sha256": "0" * 64}))
    with pytest.raises(UserError, match="does not match the checksum"):
        load_latents(str(tmp_path), vocabulary)


@pytest.mark.parametrize(
    ("forward", "shape"),
    [
        (lambda z: z[..., :3], r"\(2, 5, 3\)"),
        (lambda z: z[:, :4], r"\(2, 4, 4\)"),
        (lambda z: z[:1], r"\(1, 5, 4\)"),
        (lambda z: z[0], r"\(5, 4\)"),
        (lambda _: None, "NoneType"),
    ],
)
def test_an_encoder_returns_latents_of_its_width(vocabulary, monkeypatch, forward, shape):
    latents = Latents(SPEC, vocabulary)
    real = latents.encoder.forward
    monkeypatch.setattr(latents.encoder, "forward", lambda batch: forward(real(batch)))
    batch = make_passages(["a", "b"], [torch.ones(5, vocabulary.width), torch.ones(3, vocabulary.width)])
    with pytest.raises(UserError, match=rf"^encoder=bottleneck: forward returned {shape}, expected \(2, 5, 4\): "):
        latents(batch)
