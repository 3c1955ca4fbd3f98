"""The loss on hidden states, and steps at another ratio, over a tiny LM."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from latentwire.data.examples import Example
from latentwire.encoders.pipeline import Latents, LatentSpec
from latentwire.encoders.registry import encoder_lm_config
from latentwire.harness.errors import UserError
from latentwire.latent_training.losses import LossWeights
from latentwire.latent_training.objective import LatentObjective
from latentwire.latent_training.passages import Passage
from latentwire.lm.vocabulary import Vocabulary
from tests.helpers.random import shifted

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.float_path]

SHOWN = [[Example("s", "The mill is red.", "What colour is the mill?", ("red",))]]
TEXT = "The ferry left the long pier at noon."
PASSAGE = Passage(
    TEXT, (Example("a", TEXT, "When did it leave?", ("noon",)), Example("b", TEXT, "What?", ("The ferry",)))
)
OTHER = Passage("A kettle whistled.", (Example("c", "A kettle whistled.", "What whistled?", ("A kettle",)),))
LOSSES = ("embedding", "vocabulary", "text", "continuation", "answer", "distillation", "hidden", "rms", "manifold")


def objective_of(tiny, ratio: int = 2, **weights: float) -> LatentObjective:
    vocabulary = Vocabulary(tiny.token_embeddings())
    torch.manual_seed(shifted(0))
    dials = {"layers": 1, "ratio": ratio, "groups": "equal", "pool": "mean"}
    config = encoder_lm_config("lm_layers", tiny.model)
    latents = Latents(LatentSpec("lm_layers", dials, 8, "baseline", {}, {}, "tiny_random", config), vocabulary)
    chosen = LossWeights(**{name: weights.get(name, 0.0) for name in LOSSES})
    return LatentObjective(tiny, vocabulary, latents, chosen, SHOWN, 8, "cosine")


def outputs_of_layers(tiny, embeds: Tensor, layers: list[int], last: int) -> Tensor:
    """Return outputs of the LM's layers at the positions that predict the last inputs: (layers, last, D)."""
    found: dict[int, Tensor] = {}
    hooks = [
        tiny.model.base_model.layers[n].register_forward_hook(
            lambda _, inputs, output, n=n: found.update({n: output if isinstance(output, Tensor) else output[0]})
        )
        for n in layers
    ]
    tiny.model(inputs_embeds=embeds[None])
    for hook in hooks:
        hook.remove()
    return torch.stack([found[n][0, -last - 1 : -1] for n in layers])


@torch.no_grad()
@pytest.mark.parametrize(("every", "layers"), [(3, [0]), (1, [0, 1])])
def test_the_loss_compares_states_at_question_and_answer(tiny, monkeypatch, every, layers):
    """The LM gives the expected states over shots, passage, question and answer as one sequence."""
    monkeypatch.setattr("latentwire.latent_training.answers.HIDDEN_EVERY", every)
    objective = objective_of(tiny, hidden=1.0)
    assert list(objective.answers.compared_layers) == layers
    shots, expected = tiny.embed(objective.writer.shots(SHOWN)), 0.0
    for passage in (PASSAGE, OTHER):
        read = objective.embed_texts([passage.text])
        states: list[list[Tensor]] = [[], []]
        for example in passage.questions:
            ids = objective.answers.branch(example).token_ids
            for own, context in zip(states, (objective.latents(read)[0], read.embeds[0]), strict=True):
                parts = [shots, objective.context_embeds, context, tiny.embed(torch.tensor(ids))]
                own.append(outputs_of_layers(tiny, torch.cat(parts), layers, len(ids)))
        ours, theirs = (torch.cat(own, dim=1) for own in states)
        scale = theirs.std(dim=(1, 2), keepdim=True)
        distance = ((ours - theirs) / scale).abs()
        expected += float(torch.where(distance < 1, distance.square() / 2, distance - 0.5).mean())
    found = objective.losses("answers", [PASSAGE, OTHER], torch.Generator())
    assert set(found) == {"hidden"}
    assert float(found["hidden"]) == pytest.approx(expected, rel=1e-3)


def test_gradients_reach_the_encoder_and_not_the_teacher(tiny):
    objective = objective_of(tiny, hidden=1.0)
    objective.losses("answers", [PASSAGE], torch.Generator())["hidden"].backward()
    assert float(objective.latents.adapter.line.weight.grad.norm()) > 0
    final, layers = objective.answers.teacher_states[TEXT]
    assert layers.shape == (1, *final.shape) and not layers.requires_grad
    again = objective.losses("answers", [PASSAGE], torch.Generator())["hidden"].detach()
    assert objective.answers.teacher_states[TEXT][1] is layers
    objective.answers.teacher_states[TEXT] = (final, layers + 1)
    other = objective.losses("answers", [PASSAGE], torch.Generator())["hidden"].detach()
    assert float(other) != pytest.approx(float(again))


def test_without_the_loss_no_layers_are_compared(tiny):
    objective = objective_of(tiny, distillation=1.0)
    objective.losses("answers", [PASSAGE], torch.Generator())
    assert list(objective.answers.compared_layers) == []
    assert len(objective.answers.teacher_states[TEXT][1]) == 0


def test_a_teacher_needs_room_for_the_whole_text(tiny, monkeypatch):
    objective = objective_of(tiny, hidden=1.0)
    longest = max(len(objective.answers.branch(example).token_ids) for example in PASSAGE.questions)
    words = len(objective.writer.ids(f" {TEXT}"))
    least = objective.question_reader.prefix.length + len(objective.context_embeds) + words + longest
    monkeypatch.setattr(type(tiny), "context_length", least)
    objective.require_room(PASSAGE)
    monkeypatch.setattr(type(tiny), "context_length", least - 1)
    with pytest.raises(UserError, match=f"take {least} positions"):
        objective.require_room(PASSAGE)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["reconstruction", "continuation", "answers"])
def test_a_step_at_another_ratio_equals_an_encoder_of_that_ratio(tiny, kind):
    weights = {"embedding": 1.0, "text": 1.0, "continuation": 1.0, "answer": 1.0, "hidden": 1.0}
    usual, other = objective_of(tiny, **weights), objective_of(tiny, ratio=4, **weights)
    other.latents.load_state_dict(usual.latents.state_dict())
    found = usual.losses(kind, [PASSAGE], torch.Generator(), 4)
    expected = other.losses(kind, [PASSAGE], torch.Generator())
    assert found.keys() == expected.keys()
    plain = usual.losses(kind, [PASSAGE], torch.Generator())
    for name, value in found.items():
        assert float(value) == pytest.approx(float(expected[name]), rel=1e-5)
        assert float(value) != pytest.approx(float(plain[name]), rel=1e-3)
