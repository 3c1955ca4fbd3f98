"""Evaluations of an encoder that was trained with compressed shots, compared with the model without a cache."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from torch.nn.functional import cross_entropy, kl_div

from latentwire.data.examples import DataSpec, draw_examples, load_data
from latentwire.data.prompts import PromptWriter
from latentwire.encoders.base import make_passages
from latentwire.encoders.checkpoint import load_latents, save_latents
from latentwire.encoders.pipeline import Latents, LatentSpec
from latentwire.encoders.registry import encoder_lm_config
from latentwire.evaluation.evaluate import evaluate
from latentwire.evaluation.inputs import RepairedInputs
from latentwire.evaluation.likelihood import Likelihoods
from latentwire.evaluation.request import Request
from latentwire.evaluation.setup import Component, EvaluationSetup, Settings, prepare
from latentwire.harness.errors import UserError
from tests.helpers.models import model_spec
from tests.helpers.random import shifted

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.float_path]

STATE, NONE, DATA = PartialState(cpu=True), Component("baseline"), DataSpec("short_qa", "short_qa")
SETTINGS = Settings(
    samples=3, seed=0, shots=2, questions_per_shot=1, max_new_tokens=2, batch_tokens=2000, dtype="float32"
)


@pytest.fixture(scope="module")
def bench() -> EvaluationSetup:
    return prepare(model_spec("tiny_random"), DATA, SETTINGS, STATE)


@pytest.fixture(scope="module")
def folders(tiny, tmp_path_factory) -> dict[str, str]:
    """Folders of an encoder of ratio 2: `plain`, the same weights as `compressed`, and `other` weights."""
    from latentwire.lm.vocabulary import Vocabulary

    vocabulary, config = Vocabulary(tiny.token_embeddings()), encoder_lm_config("lm_layers", tiny.model)
    dials = {"layers": 1, "ratio": 2, "groups": "equal", "pool": "mean"}
    spec = LatentSpec(
        "lm_layers", dials, 8, "baseline", {}, model_spec("tiny_random").identity(), "tiny_random", config
    )
    folder: Path = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(shifted(0))
    latents = Latents(spec, vocabulary)
    latents.encoder.start_from(tiny.model)
    save_latents(latents, folder / "plain", {"trained_on": []})
    save_latents(latents, folder / "compressed", {"trained_on": [], "compressed_shots": True})
    with torch.no_grad():
        latents.adapter.line.bias.normal_()
    save_latents(latents, folder / "other", {"trained_on": [], "compressed_shots": True})
    return {name: str(folder / name) for name in ("plain", "compressed", "other")}


def latent(folder: str, **dials: object) -> Component:
    return Component("latent", {"checkpoint": folder, "factor": 1.0, "ratio": None, **dials})


def latents_of(bench: EvaluationSetup, folder: str, text: str) -> torch.Tensor:
    """Return the latents of a passage with its tokens in a prompt, (L, D)."""
    ids = bench.lm.tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
    embeds = bench.lm.embed(torch.tensor(ids))
    return load_latents(folder, bench.vocabulary)(make_passages([text], [embeds]))[0]


def shots_by_hand(bench: EvaluationSetup, folder: str | None) -> torch.Tensor:
    """Return the embeddings of the shots, written out; with a folder, passages are its latents."""
    s, writer = bench.settings, PromptWriter(bench.lm.tokenizer)
    shots, _ = draw_examples(load_data(DATA), s.shots, s.questions_per_shot, s.seed, s.seed, s.part)

    def embed(text: str) -> torch.Tensor:
        return bench.lm.embed(torch.tensor(writer.ids(text)))

    parts = []
    for (example,) in shots:
        passage = embed(f" {example.context}") if folder is None else latents_of(bench, folder, example.context)
        parts += [embed("Context:"), passage, embed("\nQuestion:"), embed(f" {example.question}"), embed("\nAnswer:")]
        parts += [embed(f" {example.answers[0]}"), embed("\n\n")]
    return torch.cat(parts)


@torch.no_grad()
def logits_by_hand(bench: EvaluationSetup, shots: torch.Tensor, prompt: torch.Tensor, count: int) -> torch.Tensor:
    """Return the last logits over shots and prompt, (count, V), without a cache."""
    return bench.lm.model(inputs_embeds=torch.cat([shots, prompt])[None], use_cache=False).logits[0, -count:]


def test_logits_are_the_models_own_after_shots_of_latents(bench, folders):
    for name in ("compressed", "plain"):
        source = latent(folders[name])
        setup = bench.with_shots_of(source)
        prompt, _ = RepairedInputs(setup, source, NONE).embed(setup.prompts[0])
        found = setup.decoder.answer_logits([prompt], [[5]])[0]
        as_latents, as_text = (
            logits_by_hand(bench, shots_by_hand(bench, folder), prompt, 1) for folder in (folders[name], None)
        )
        own, other = (as_latents, as_text) if name == "compressed" else (as_text, as_latents)
        assert torch.allclose(found, own, atol=1e-4)
        assert not torch.allclose(found, other, atol=1e-3)


def test_the_shots_have_half_the_positions_of_passages(bench, folders):
    text = bench.decoder.prefix.length
    passages = [piece for piece in bench.shots if piece.passage is not None]
    saved = sum(len(piece.token_ids) - math.ceil(len(piece.token_ids) / 2) for piece in passages)
    assert len(passages) == 2 and saved > 2
    for source, expected in (
        (latent(folders["compressed"]), text - saved),
        (latent(folders["compressed"], ratio=1), text),
        (latent(folders["plain"]), text),
        (Component("text"), text),
    ):
        measured, _ = evaluate(bench, source, NONE, STATE, "shots")
        assert measured["timing"]["shots_positions"] == expected


def test_sources_share_a_decoder_only_with_equal_shots(bench, folders):
    one = bench.with_shots_of(latent(folders["compressed"])).decoder
    assert bench.with_shots_of(latent(folders["compressed"])).decoder is one
    other = bench.with_shots_of(latent(folders["other"])).decoder
    assert other is not one and other is not bench.decoder
    assert not torch.equal(other.prefix.layers[-1][1], one.prefix.layers[-1][1])
    for source in (Component("text"), latent(folders["plain"]), Component("empty")):
        assert bench.with_shots_of(source).decoder is bench.decoder


def test_likelihoods_do_not_depend_on_the_source_before(bench, folders):
    shared, sources = Likelihoods(bench, STATE), [latent(folders[name]) for name in ("plain", "compressed", "other")]
    together = [shared.over(source, "") for source in (*sources, *sources)]
    assert together[:3] == together[3:]
    assert len({own[0].nll for own in together[:3]}) == 3


@torch.no_grad()
def test_likelihoods_are_after_the_sources_own_shots(bench, folders):
    """The KL is to the LM that has shots and passage as text."""
    folder, one = folders["compressed"], replace(bench, prompts=bench.prompts[:1])
    (found,) = Likelihoods(one, STATE).over(latent(folder), "")
    writer, example = PromptWriter(bench.lm.tokenizer), bench.prompts[0].example
    answer = writer.ids(f" {example.answers[0]}")[:2]
    before, after = (bench.lm.embed(torch.tensor(ids)) for ids in (writer.ids("Context:"), writer.asked(example)))
    own = bench.lm.embed(torch.tensor(answer))
    over, text = (
        logits_by_hand(bench, shots, torch.cat([before, passage, after, own]), len(answer) + 1)[:-1]
        for shots, passage in (
            (shots_by_hand(bench, folder), latents_of(bench, folder, example.context)),
            (shots_by_hand(bench, None), bench.lm.embed(torch.tensor(writer.ids(f" {example.context}")))),
        )
    )
    assert found.nll == pytest.approx(float(cross_entropy(over, torch.tensor(answer))), abs=1e-4)
    expected = kl_div(over.log_softmax(-1), text.log_softmax(-1), log_target=True, reduction="batchmean")
    assert found.kl == pytest.approx(float(expected), abs=1e-4)


def test_only_compressed_shots_change_the_identity(folders):
    def identity(name: str) -> dict[str, Any]:
        return Request(model_spec("tiny_random"), DATA, SETTINGS, torch.float32, latent(folders[name]), NONE).identity()

    plain, compressed = identity("plain"), identity("compressed")
    assert "compressed_shots" not in plain
    assert compressed == {**plain, "compressed_shots": True}


def test_room_is_counted_after_the_compressed_shots(bench, folders, monkeypatch):
    source = latent(folders["compressed"])
    setup = bench.with_shots_of(source)
    embeds, _ = RepairedInputs(setup, source, NONE).embed(bench.prompts[0])
    least = setup.decoder.prefix.length + len(embeds) + SETTINGS.max_new_tokens
    assert least < bench.decoder.prefix.length + len(embeds) + SETTINGS.max_new_tokens
    monkeypatch.setattr(type(bench.lm), "context_length", least)
    RepairedInputs(setup, source, NONE).embed(bench.prompts[0])
    monkeypatch.setattr(type(bench.lm), "context_length", least - 1)
    with pytest.raises(UserError, match="more than the model's context has room for"):
        RepairedInputs(setup, source, NONE).embed(bench.prompts[0])
    shots = setup.decoder.prefix.length
    monkeypatch.setattr(type(bench.lm), "context_length", shots + SETTINGS.max_new_tokens)
    with pytest.raises(UserError, match=rf"shots=2: take {shots} positions with the source latent"):
        bench.with_shots_of(source)


def test_latents_of_shots_that_are_not_finite_are_named(bench, folders, monkeypatch):
    monkeypatch.setattr(
        "latentwire.sources.latent.Latent.replace", lambda self, x, generator, passage: x * float("nan")
    )
    with pytest.raises(UserError, match=r"source latent .* gave NaN or infinite values for example \(shot 1\)"):
        bench.with_shots_of(latent(folders["compressed"]))
