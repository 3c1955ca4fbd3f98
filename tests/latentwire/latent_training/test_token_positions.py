"""Positions that stand for no token, such as markers, count in neither the loss `embedding` nor the cosines."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from accelerate import PartialState
from torch.nn.functional import cosine_similarity

from latentwire.data.examples import DataSpec
from latentwire.encoders.checkpoint import save_latents
from latentwire.encoders.pipeline import Latents, LatentSpec
from latentwire.encoders.registry import encoder_lm_config
from latentwire.evaluation.evaluate import evaluate
from latentwire.evaluation.setup import Component, Settings, prepare
from latentwire.latent_training.losses import LossWeights
from latentwire.latent_training.objective import LatentObjective
from latentwire.latent_training.passages import Passage
from latentwire.latent_training.validation import HeldOut
from latentwire.lm.vocabulary import Vocabulary
from tests.helpers.models import model_spec
from tests.helpers.random import shifted

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.float_path]

TEXTS = ["The ferry left the long pier at noon.", "A kettle whistled near the old window."]
LOSSES = ("embedding", "vocabulary", "text", "continuation", "answer", "distillation", "hidden", "rms", "manifold")
MARKED = ("lm_layers", {"layers": 1, "ratio": 2, "groups": "equal", "pool": "mean", "markers": 2})
STYLED = ("cut_text", {"ratio": 2, "style_tokens": 2})


def latents_of(tiny, encoder: str, dials: dict) -> Latents:
    torch.manual_seed(shifted(0))
    config, identity = encoder_lm_config(encoder, tiny.model), model_spec("tiny_random").identity()
    spec = LatentSpec(encoder, dials, 8, "baseline", {}, identity, "tiny_random", config)
    latents = Latents(spec, Vocabulary(tiny.token_embeddings()))
    latents.encoder.start_from(tiny.model)
    return latents.eval()


def objective_of(tiny, latents: Latents, distance: str = "cosine") -> LatentObjective:
    weights = LossWeights(**{name: float(name == "embedding") for name in LOSSES})
    return LatentObjective(tiny, Vocabulary(tiny.token_embeddings()), latents, weights, [], 8, distance)


def parts_of(objective: LatentObjective, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the latents before two markers, and the means of the groups of tokens that they stand for."""
    read = objective.embed_texts([text])
    x, tokens = objective.latents(read)[0].detach(), read.lengths[0]
    held = math.ceil(tokens / 2) - 2
    bounds = [place * tokens // held for place in range(held + 1)]
    groups = [read.embeds[0, a:b].mean(dim=0) for a, b in itertools.pairwise(bounds)]
    return x[:held], torch.stack(groups)


@pytest.mark.parametrize("distance", ["cosine", "mse"])
def test_markers_are_not_in_the_embedding_loss(tiny, distance):
    objective = objective_of(tiny, latents_of(tiny, *MARKED), distance)
    expected = 0.0
    for text in TEXTS:
        x, groups = parts_of(objective, text)
        squared = ((x - groups) / objective.latents.mean_token_rms).square().mean()
        expected += float((1 - cosine_similarity(x, groups)).mean() if distance == "cosine" else squared)
    found = objective.losses("reconstruction", [Passage(text, ()) for text in TEXTS], torch.Generator())["embedding"]
    assert float(found.detach()) == pytest.approx(expected, rel=1e-4)
    found.backward()
    assert objective.latents.encoder.markers.grad is None or not objective.latents.encoder.markers.grad.any()


@torch.no_grad()
def test_markers_are_not_in_the_held_out_cosines(tiny):
    objective = objective_of(tiny, latents_of(tiny, *MARKED))
    found = HeldOut(objective, [Passage(text, ()) for text in TEXTS], [], 2, 99).scores(False, PartialState(cpu=True))
    parts = [parts_of(objective, text) for text in TEXTS]
    expected = sum(float(cosine_similarity(x, groups).mean()) for x, groups in parts) / 2
    assert found["cosine"] == pytest.approx(expected, rel=1e-4)
    (first, _), (second, _) = parts
    least = min(len(first), len(second))
    between = float(cosine_similarity(first[:least], second[:least]).mean())
    assert found["mean_pairwise_cosine"] == pytest.approx(between, rel=1e-4)


@torch.no_grad()
def test_style_vectors_stand_for_no_token(tiny):
    """The tokens of `cut_text` stand for themselves."""
    objective = objective_of(tiny, latents_of(tiny, *STYLED))
    encoder, read = objective.latents.encoder, objective.embed_texts([*TEXTS, "Rain fell."])
    stands_for, latents = encoder.stands_for(read), objective.latents(read)
    for row, (x, tokens) in enumerate(zip(latents, read.lengths, strict=True)):
        styles = min(2, len(x) - 1)
        assert encoder.token_positions(tokens) == slice(styles, len(x))
        assert torch.equal(stands_for[row, :styles], torch.zeros(styles, 64))
        assert torch.equal(stands_for[row, styles : len(x)], x[styles:])
        assert not stands_for[row, len(x) :].any()
    found = HeldOut(objective, [Passage(text, ()) for text in TEXTS], [], 2, 99).scores(False, PartialState(cpu=True))
    assert found["cosine"] == pytest.approx(1)


@pytest.mark.parametrize(("encoder", "dials"), [MARKED, STYLED])
def test_an_evaluation_compares_positions_of_tokens(tiny, tmp_path, encoder, dials):
    """A marker or style vector is the same for every passage, which is not a sign of a collapsed encoder."""
    latents = latents_of(tiny, encoder, {**dials, "ratio": 12})
    save_latents(latents, tmp_path, {"trained_on": []})
    settings = Settings(2, seed=0, shots=1, questions_per_shot=1, max_new_tokens=2, batch_tokens=2000, dtype="float32")
    setup = prepare(model_spec("tiny_random"), DataSpec("short_qa", "short_qa"), settings, PartialState(cpu=True))
    choice = Component("latent", {"checkpoint": str(tmp_path), "factor": 1.0})
    scores, _ = evaluate(setup, choice, Component("baseline"), PartialState(cpu=True), "latent")
    texts = list(dict.fromkeys(prompt.example.context for prompt in setup.prompts))
    read = objective_of(tiny, latents).embed_texts(texts)
    own = [
        x[min(2, len(x) - 1) :] if encoder == "cut_text" else x[:-2] for x in (rows.detach() for rows in latents(read))
    ]
    assert len(own) == 2
    least = min(map(len, own))
    between = float(cosine_similarity(own[0][:least], own[1][:least]).mean())
    assert scores["latents"]["mean_pairwise_cosine"] == pytest.approx(between, abs=1e-3)
