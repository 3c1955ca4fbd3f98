"""Training with shots whose passages are latents: prefix, losses, room, and the evaluation of held-out passages."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from accelerate import PartialState
from torch import nn

from latentwire.data.examples import Example
from latentwire.encoders.base import LMFacts, Passages
from latentwire.encoders.bottleneck import Bottleneck
from latentwire.encoders.pipeline import Latents, LatentSpec
from latentwire.encoders.registry import encoder_lm_config
from latentwire.harness.errors import UserError
from latentwire.latent_training import validation
from latentwire.latent_training.compressed_shots import CompressedShotsObjective
from latentwire.latent_training.losses import LossWeights
from latentwire.latent_training.objective import LatentObjective
from latentwire.latent_training.passages import Passage
from latentwire.latent_training.step_plan import TrainingSpec
from latentwire.latent_training.validation import HeldOut
from latentwire.lm.decoding import Decoder, Prefix
from latentwire.lm.vocabulary import Vocabulary
from tests.helpers.random import shifted

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.float_path]

SHOWN = [
    [Example("s", "The mill by the river is red.", "What colour is the mill?", ("red",))],
    [Example("t", "Old Anna rows a boat.", "Who rows?", ("Anna",))],
]
TEXT = "The ferry left the long pier at noon."
PASSAGE = Passage(TEXT, (Example("a", TEXT, "When did it leave?", ("noon",)), Example("b", TEXT, "What?", ("ferry",))))
SPEC = {"layers": 1, "ratio": 2, "groups": "equal", "pool": "mean"}
WEIGHTS = dict.fromkeys(
    ("embedding", "vocabulary", "text", "continuation", "answer", "distillation", "hidden", "rms", "manifold"), 0.0
)


class Oracle(nn.Module):
    """Latents that equal the embeddings of the text."""

    mean_token_rms = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Bottleneck(LMFacts(64, 1.0), d_z=1)  # used only for its positions

    def forward(self, passages: Passages, generator: object = None) -> list[torch.Tensor]:
        return [rows[:n] for rows, n in zip(passages.embeds, passages.lengths, strict=True)]


def objective_of(
    tiny: Any, compressed: bool = True, oracle: bool = False, ratio: int = 2, **weights: float
) -> LatentObjective:
    vocabulary = Vocabulary(tiny.token_embeddings())
    torch.manual_seed(shifted(0))
    config = encoder_lm_config("lm_layers", tiny.model)
    latents = Latents(
        LatentSpec("lm_layers", {**SPEC, "ratio": ratio}, 8, "baseline", {}, {}, "tiny", config), vocabulary
    )
    latents.encoder.start_from(tiny.model)
    kind = CompressedShotsObjective if compressed else LatentObjective
    losses = LossWeights(**{**WEIGHTS, **(weights or {"answer": 1.0, "distillation": 1.0})})
    objective = kind(tiny, vocabulary, latents, losses, SHOWN, 4, "cosine")
    if oracle:
        objective.latents = Oracle()
    return objective


def keys(prefix: Prefix) -> torch.Tensor:
    return torch.cat([tensor.flatten() for layer in prefix.layers for tensor in layer])


def test_text_as_latents_gives_the_losses_of_text_shots(tiny):
    """The losses are compared with the losses of the objective whose shots are tokens."""
    weights = {"answer": 1.0, "distillation": 1.0, "hidden": 1.0}
    plain, compressed = (objective_of(tiny, kind, oracle=True, **weights) for kind in (False, True))
    compressed.encode_shots(None)
    expected, found = (own.losses("answers", [PASSAGE], torch.Generator()) for own in (plain, compressed))
    assert float(found["answer"].detach()) == pytest.approx(float(expected["answer"].detach()), abs=1e-4)
    assert float(found["distillation"].detach()) == pytest.approx(0, abs=1e-4)
    assert float(found["hidden"].detach()) == pytest.approx(0, abs=1e-4)
    assert torch.allclose(keys(compressed.question_reader.prefix), keys(plain.question_reader.prefix), atol=1e-4)


def test_other_latents_change_the_students_shots_alone(tiny):
    plain, compressed = objective_of(tiny, False), objective_of(tiny)
    compressed.encode_shots(None)
    for objective in (plain, compressed):
        objective.losses("answers", [PASSAGE], torch.Generator())
    assert torch.equal(compressed.answers.teacher_states[TEXT][0], plain.answers.teacher_states[TEXT][0])
    found, expected = (own.losses("answers", [PASSAGE], torch.Generator())["answer"] for own in (compressed, plain))
    assert abs(float(found.detach()) - float(expected.detach())) > 1e-4


@pytest.mark.parametrize("ratio", [2, 3])
def test_the_prefix_is_shorter_by_what_the_passages_save(tiny, ratio):
    objective = objective_of(tiny)
    tokens = [len(objective.writer.ids(f" {examples[0].context}")) for examples in SHOWN]
    saved = sum(own - math.ceil(own / ratio) for own in tokens)
    objective.encode_shots(None if ratio == 2 else ratio)
    assert objective.teacher_reader.prefix.length == len(objective.writer.shots(SHOWN))
    assert objective.question_reader.prefix.length == len(objective.writer.shots(SHOWN)) - saved
    assert objective.latents.encoder.ratio == 2
    if ratio == 2:
        assert objective.shots_positions() == objective.question_reader.prefix.length


def test_the_prefix_follows_the_weights_without_gradients(tiny):
    objective = objective_of(tiny)
    with_gradients: list[bool] = []
    objective.latents.register_forward_hook(lambda module, _, found: with_gradients.append(found[0].requires_grad))
    objective.encode_shots(None)
    before = objective.question_reader.prefix
    assert not any(tensor.requires_grad for layer in before.layers for tensor in layer)
    optimizer = torch.optim.SGD(objective.latents.parameters(), lr=0.1)
    loss = objective.losses("answers", [PASSAGE], torch.Generator())["answer"]
    assert with_gradients == [False, True]  # shots, then the passage
    loss.backward()
    optimizer.step()
    assert objective.question_reader.prefix is before  # until the next step
    objective.encode_shots(None)
    after = objective.question_reader.prefix
    assert after.length == before.length
    assert float((keys(after) - keys(before)).abs().max()) > 1e-4
    again = objective.shots_prefix(SHOWN)
    assert torch.equal(keys(after), keys(again))


def test_losses_of_answers_need_encoded_shots(tiny):
    objective = objective_of(tiny, answer=1.0, text=1.0)
    objective.losses("reconstruction", [PASSAGE], torch.Generator())  # has no shots
    with pytest.raises(RuntimeError, match="encode_shots"):
        objective.losses("answers", [PASSAGE], torch.Generator())


def test_room_is_needed_for_the_compressed_shots(tiny, monkeypatch):
    """With a teacher, room is needed for the shots as text, too."""

    def refused(least: int, **weights: float) -> None:
        objective = objective_of(tiny, ratio=2, **weights)
        with monkeypatch.context() as patch:
            patch.setattr(type(tiny), "context_length", least)
            objective.require_room(PASSAGE)
            patch.setattr(type(tiny), "context_length", least - 1)
            with pytest.raises(UserError, match=f"take {least} positions, more than the model's {least - 1}"):
                objective.require_room(PASSAGE)

    whole = objective_of(tiny, answer=1.0)
    words, lead = len(whole.writer.ids(f" {TEXT}")), len(whole.context_embeds)
    longest = max(len(whole.answers.branch(example).token_ids) for example in PASSAGE.questions)
    whole.encode_shots(None)
    refused(whole.question_reader.prefix.length + lead + math.ceil(words / 2) + longest, answer=1.0)
    refused(len(whole.writer.shots(SHOWN)) + lead + words + longest, distillation=1.0)


def test_a_shot_that_is_too_short_is_refused(tiny):
    with pytest.raises(UserError, match=r"ratio=99: more than the \d+ tokens of a passage"):
        objective_of(tiny, ratio=99).shots_positions()


def test_held_out_answers_follow_the_present_weights(tiny, monkeypatch):
    """Every evaluation encodes the shots with its own weights; text shots are encoded once."""
    used: list[Prefix] = []

    class Recorded(Decoder):
        def __init__(self, lm: Any, prefix: Prefix, max_new_tokens: int) -> None:
            used.append(prefix)
            super().__init__(lm, prefix, max_new_tokens)

    monkeypatch.setattr(validation, "Decoder", Recorded)
    for compressed in (True, False):
        used.clear()
        objective = objective_of(tiny, compressed)
        held_out = HeldOut(objective, [PASSAGE], SHOWN, 2, 9999)
        held_out.scores(True, PartialState(cpu=True))
        with torch.no_grad():
            for parameter in objective.latents.parameters():
                parameter.add_(0.1)
        held_out.scores(True, PartialState(cpu=True))
        assert len(used) == (2 if compressed else 1)
        assert torch.equal(keys(used[-1]), keys(objective.shots_prefix(SHOWN)))
        assert not compressed or not torch.equal(keys(used[0]), keys(used[1]))


def test_a_run_without_shots_has_none_to_compress():
    usual: dict[str, Any] = {
        "samples": 9, "extra_words": None, "epochs": 5, "first_phase": 0.4, "held_out": 0.1, "questions_per_shot": 1,
        "answer_tokens": 8, "max_new_tokens": 2, "distance": "cosine", "passages_per_step": 2, "batch_tokens": 99,
        "evaluate_every": 1, "judge_by": None, "patience": 3,
    }  # fmt: skip
    assert "compressed_shots" not in TrainingSpec(**usual, shots=0).identity()
    assert TrainingSpec(**usual, shots=1, compressed_shots=True).identity()["compressed_shots"] is True
    with pytest.raises(UserError, match="compressed_shots=true shots=0: no shots to compress"):
        TrainingSpec(**usual, shots=0, compressed_shots=True)
