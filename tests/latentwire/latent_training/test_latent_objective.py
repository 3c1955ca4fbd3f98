"""The objectives over a tiny LM: evaluation of held-out passages, each loss, and the plan of steps."""

from __future__ import annotations

import math

import pytest
import torch
from accelerate import PartialState
from torch import nn

from latentwire.data.examples import Example
from latentwire.encoders.base import LMFacts, Passages
from latentwire.encoders.bottleneck import Bottleneck
from latentwire.encoders.pipeline import Latents, LatentSpec
from latentwire.harness.errors import UserError
from latentwire.harness.optimization import NonFiniteError
from latentwire.harness.random import generator_for
from latentwire.latent_training.losses import LossWeights
from latentwire.latent_training.objective import AGAIN, VOCABULARY_TOKENS, LatentObjective, halves
from latentwire.latent_training.passages import Passage
from latentwire.latent_training.step_plan import TrainingSpec, epochs_before_answers, plan_steps
from latentwire.latent_training.validation import HeldOut
from latentwire.lm.decoding import Decoder, Generated
from latentwire.lm.vocabulary import Vocabulary, rms
from tests.helpers.random import shifted

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.float_path]

SHOWN = [[Example("s", "The mill is red.", "What colour is the mill?", ("red",))]]
TEXT = "The ferry left the long pier at noon."
PASSAGE = Passage(
    TEXT, (Example("a", TEXT, "When did it leave?", ("noon",)), Example("b", TEXT, "What?", ("The ferry",)))
)
OTHER = Passage("A kettle whistled.", (Example("c", "A kettle whistled.", "What whistled?", ("A kettle",)),))
ALL = {
    "embedding": 1,
    "vocabulary": 0,
    "text": 1,
    "continuation": 1,
    "answer": 1,
    "distillation": 1,
    "hidden": 0,
    "rms": 1,
    "manifold": 1,
}


def objective_of(
    tiny, answer_tokens: int = 8, transform: str = "baseline", distance: str = "cosine", **weights: float
) -> LatentObjective:
    vocabulary = Vocabulary(tiny.token_embeddings())
    dials = {"eps": 0.0} if transform == "anchor_offset" else {}
    torch.manual_seed(shifted(0))
    spec = LatentSpec("bottleneck", {"d_z": 4}, 8, transform, dials, {}, "tiny_random")
    chosen = LossWeights(**{name: weights.get(name, 0.0) for name in ALL})
    return LatentObjective(tiny, vocabulary, Latents(spec, vocabulary), chosen, SHOWN, answer_tokens, distance)


class Oracle(nn.Module):
    """Latents that equal the embeddings of the text."""

    mean_token_rms = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Bottleneck(LMFacts(64, 1.0), d_z=1)  # used only for `stands_for`

    def forward(self, passages: Passages, generator: object = None) -> list[torch.Tensor]:
        return [rows[:n] for rows, n in zip(passages.embeds, passages.lengths, strict=True)]


def nll(tiny, ids: list[int], targets: int) -> float:
    """Return the model's own mean negative log-likelihood of the last tokens."""
    logits = tiny.model(input_ids=torch.tensor([ids])).logits[0, -targets - 1 : -1]
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[-targets:])))


def test_with_text_as_latents_losses_equal_the_models_own(tiny):
    objective = objective_of(tiny, **{name: 1.0 for name in ALL if name != "vocabulary"})
    objective.latents = Oracle()
    ids = objective.writer.ids
    lead, text = ids("Context:"), ids(f" {TEXT}")

    found = objective.losses("reconstruction", [PASSAGE], torch.Generator())
    assert set(found) == {"embedding", "text", "rms", "manifold"}
    assert float(found["embedding"]) == pytest.approx(0, abs=1e-5)
    assert float(found["manifold"]) == pytest.approx(0, abs=1e-5)
    assert float(found["text"].detach()) == pytest.approx(
        nll(tiny, [*lead, *text, *ids(AGAIN), *text], len(text)), abs=1e-3
    )

    first, rest = ids(" The ferry left the"), ids(" long pier at noon.")
    found = objective.losses("continuation", [PASSAGE], torch.Generator())
    assert set(found) == {"continuation", "rms", "manifold"}
    assert float(found["continuation"]) == pytest.approx(nll(tiny, [*lead, *first, *rest], len(rest)), abs=1e-3)

    found = objective.losses("answers", [PASSAGE, OTHER], torch.Generator())
    assert set(found) == {"answer", "distillation", "hidden", "rms", "manifold"}
    assert float(found["distillation"]) == pytest.approx(0, abs=1e-4)
    assert float(found["hidden"]) == pytest.approx(0, abs=1e-4)
    shots = objective.writer.shots(SHOWN).tolist()
    expected = 0.0
    for passage in (PASSAGE, OTHER):
        losses, tokens = 0.0, 0
        for example in passage.questions:
            answer = [*ids(f" {example.answers[0]}"), ids("\nQuestion:")[0]]
            whole = [*shots, *objective.writer.prompt(example).token_ids.tolist(), *answer]
            losses, tokens = losses + len(answer) * nll(tiny, whole, len(answer)), tokens + len(answer)
        expected += losses / tokens
    assert float(found["answer"]) == pytest.approx(expected, abs=1e-3)


def test_a_loss_of_weight_0_is_not_computed(tiny):
    objective = objective_of(tiny, embedding=1.0)
    assert not hasattr(objective, "question_reader")
    assert set(objective.losses("reconstruction", [PASSAGE], torch.Generator())) == {"embedding"}
    assert set(objective_of(tiny, answer=1.0).losses("answers", [PASSAGE], torch.Generator())) == {"answer"}


def test_the_teacher_reads_a_passage_once_and_by_itself(tiny):
    objective = objective_of(tiny, distillation=1.0)
    first = float(objective.losses("answers", [PASSAGE], torch.Generator())["distillation"].detach())
    assert first > 0
    known = objective.answers.teacher_states[TEXT]
    both = objective.losses("answers", [PASSAGE, OTHER], torch.Generator())["distillation"]
    assert objective.answers.teacher_states[TEXT] is known
    alone = float(objective.losses("answers", [OTHER], torch.Generator())["distillation"].detach())
    assert float(both.detach()) == pytest.approx(first + alone, rel=1e-4)
    assert not known[0].requires_grad


def test_the_teachers_states_are_bounded(tiny, monkeypatch):
    monkeypatch.setattr("latentwire.latent_training.answers.TEACHER_BYTES", 1)
    objective = objective_of(tiny, distillation=1.0)
    objective.losses("answers", [PASSAGE, OTHER], torch.Generator())
    assert list(objective.answers.teacher_states) == [TEXT]


def test_distillation_is_from_the_text_to_the_latents(tiny):
    objective = objective_of(tiny, distillation=1.0)
    read = objective.embed_texts([TEXT])
    branches = [tuple(objective.answers.branch(example) for example in PASSAGE.questions)]
    ours, theirs = (
        objective.question_reader.logits(
            objective.question_reader.states(objective.packed_rows(x, branches))
        ).log_softmax(-1)
        for x in (objective.latents(read), [read.embeds[0]])
    )
    expected = (theirs.exp() * (theirs - ours)).sum(-1).mean()
    found = objective.losses("answers", [PASSAGE], torch.Generator())["distillation"]
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-3)


def test_lengths_are_in_units_of_the_tokens_rms(tiny):
    objective = objective_of(tiny, embedding=1.0, rms=1.0, distance="mse")
    unit, read = float(objective.vocabulary.mean_rms), objective.embed_texts([TEXT])
    x, found = objective.latents(read)[0], objective.losses("reconstruction", [PASSAGE], torch.Generator())
    squared = ((x - read.embeds[0]) / unit).square().mean()
    assert float(found["embedding"].detach()) == pytest.approx(float(squared.detach()), rel=1e-4)
    assert float(found["rms"].detach()) == pytest.approx(
        float((rms(x) / unit).log().square().mean().detach()), rel=1e-4
    )


def test_losses_of_several_passages_are_the_sum_of_theirs(tiny):
    objective = objective_of(tiny, text=1.0, continuation=1.0, answer=1.0)
    for kind in ("reconstruction", "continuation", "answers"):
        both, first, second = (
            objective.losses(kind, own, torch.Generator()) for own in ([PASSAGE, OTHER], [PASSAGE], [OTHER])
        )
        for name, value in both.items():
            assert float(value.detach()) == pytest.approx(
                float(first[name].detach()) + float(second[name].detach()), rel=1e-4
            )


def test_held_out_questions_follow_the_shots(tiny, monkeypatch):
    """Each question is answered over the latents of its own passage."""
    objective, asked = objective_of(tiny, answer=1.0), [*PASSAGE.questions, *OTHER.questions]
    objective.latents = Oracle()

    def decode(decoder: Decoder, inputs: list[torch.Tensor]) -> tuple[list[Generated], bool]:
        assert decoder.prefix.length == len(objective.writer.shots(SHOWN))
        prompts = {example.answers[0]: tiny.embed(objective.writer.prompt(example).token_ids) for example in asked}
        said = [next(answer for answer, own in prompts.items() if torch.equal(own, rows)) for rows in inputs]
        return [Generated((), text, False) for text in said], False

    monkeypatch.setattr(Decoder, "decode", decode)
    scores = HeldOut(objective, [PASSAGE, OTHER], SHOWN, 2, 9999).scores(True, PartialState(cpu=True))
    assert (scores["f1"], scores["questions"]) == (1.0, 3)
    assert scores["cosine"] == pytest.approx(1)


def test_a_nan_held_out_latent_stops_the_run(tiny):
    objective = objective_of(tiny, embedding=1.0)
    with torch.no_grad():
        objective.latents.adapter.norm.bias[0] = float("nan")
    with pytest.raises(NonFiniteError, match="the held-out passage 'The ferry"):
        HeldOut(objective, [PASSAGE, OTHER], SHOWN, 2, 9999).scores(False, PartialState(cpu=True))


def test_answer_targets_stop_at_answer_tokens_or_the_end(tiny):
    ids = objective_of(tiny, embedding=1.0).writer.ids
    answer = [*ids(" The ferry"), ids("\nQuestion:")[0]]
    assert len(answer) > 2
    assert objective_of(tiny, embedding=1.0).answers.branch(PASSAGE.questions[1]).targets == tuple(answer)
    assert objective_of(tiny, answer_tokens=2, embedding=1.0).answers.branch(PASSAGE.questions[1]).targets == tuple(
        answer[:2]
    )
    whole = objective_of(tiny, distillation=1.0)
    assert whole.answers.branch(PASSAGE.questions[1]).targets == (*whole.writer.asked(PASSAGE.questions[1]), *answer)
    branches = tuple(whole.answers.branch(example) for example in PASSAGE.questions)
    asked = [len(whole.writer.asked(example)) for example in PASSAGE.questions]
    first = len(branches[0].token_ids) - asked[0]
    expected = [False] * asked[0] + [True] * first + [False] * asked[1] + [True] * len(answer)
    assert whole.answers.mask(PASSAGE, branches).tolist() == expected
    with pytest.raises(UserError, match="answer_tokens=0"):
        objective_of(tiny, answer_tokens=0, embedding=1.0)


def test_random_tokens_of_the_vocabulary_are_reconstructed(tiny):
    objective = objective_of(tiny, vocabulary=1.0)
    loss = objective.vocabulary_loss(0, 1)
    again, other = objective.vocabulary_loss(0, 1), objective.vocabulary_loss(0, 2)
    assert 0 < float(loss.detach()) < 2
    assert torch.equal(loss, again) and not torch.equal(loss, other)


def test_random_tokens_pass_a_discrete_transform(tiny):
    """The gradient passes straight through."""
    objective = objective_of(tiny, vocabulary=1.0, transform="anchor_offset")
    loss = objective.vocabulary_loss(0, 1)
    ids = torch.randint(objective.vocabulary.size, (VOCABULARY_TOKENS,), generator=generator_for(0, "tokens", 1))
    tokens = objective.vocabulary.embeddings[ids]
    adapted = objective.latents.adapter(
        objective.latents.encoder.down(tokens / objective.latents.mean_token_rms)
    ).detach()
    directions = torch.nn.functional.normalize(objective.vocabulary.embeddings, dim=-1)
    chosen = (torch.nn.functional.normalize(adapted, dim=-1) @ directions.T).argmax(dim=-1)  # eps=0: the nearest token
    by_hand = 1 - (directions[chosen] * directions[ids]).sum(dim=-1).mean()
    assert float(loss.detach()) == pytest.approx(float(by_hand), abs=1e-4)
    plain = objective_of(tiny, vocabulary=1.0).vocabulary_loss(0, 1)
    assert float(loss.detach()) != pytest.approx(float(plain.detach()), abs=1e-3)
    loss.backward()  # straight through: the chosen token has no gradient
    assert float(objective.latents.encoder.down.weight.grad.norm()) > 0


def test_random_tokens_skip_transforms_over_a_whole_passage(tiny):
    plain = objective_of(tiny, vocabulary=1.0).vocabulary_loss(0, 1)
    assert torch.equal(objective_of(tiny, vocabulary=1.0, transform="batch_distribution").vocabulary_loss(0, 1), plain)


def test_a_text_is_split_in_its_middle():
    assert halves("a b c") == ("a", "b c")
    assert halves("a b c d") == ("a b", "c d")
    assert halves("word") == ("word", "word")


def test_the_cost_of_a_step_counts_its_positions(tiny):
    objective = objective_of(tiny, answer=1.0)
    words = len(objective.writer.ids(f" {TEXT}"))
    assert objective.cost("reconstruction", PASSAGE) == 2 * words
    assert objective.cost("answers", PASSAGE) == len(objective.writer.shots(SHOWN)) + words + 2 * 24
    objective.latents.encoder.positions = lambda tokens: words + 9  # more positions than tokens
    assert objective.cost("reconstruction", PASSAGE) == 2 * words + 9
    assert objective.cost("answers", PASSAGE) == len(objective.writer.shots(SHOWN)) + words + 9 + 2 * 24


def test_a_passage_longer_than_the_context_is_refused(tiny, monkeypatch):
    """Each loss needs its own number of positions; a passage that no LM reads needs none."""

    def refused(least: int, **weights: float) -> None:
        """Assert that the passage fits into `least` positions and not into fewer."""
        objective = objective_of(tiny, **weights)
        objective.latents.encoder.positions = lambda tokens: 2
        with monkeypatch.context() as patch:
            patch.setattr(type(tiny), "context_length", least)
            objective.require_room(PASSAGE)
            patch.setattr(type(tiny), "context_length", least - 1)
            with pytest.raises(UserError, match=f"take {least} positions, more than the model's {least - 1}"):
                objective.require_room(PASSAGE)

    whole = objective_of(tiny, distillation=1.0, text=1.0)
    lead, words = len(whole.context_embeds), len(whole.writer.ids(f" {TEXT}"))
    longest = max(len(whole.answers.branch(example).token_ids) for example in PASSAGE.questions)
    bare, asking = whole.text_reader.prefix.length + lead, whole.question_reader.prefix.length + lead
    refused(bare + 2 + len(whole.writer.ids(AGAIN)) + words, text=1.0)
    refused(bare + 2 + len(whole.writer.ids(AGAIN)) + words, continuation=1.0)
    refused(asking + 2 + longest, answer=1.0)
    refused(asking + words + longest, distillation=1.0)  # the teacher reads the text
    untouched, asked = objective_of(tiny, embedding=1.0), objective_of(tiny, answer=1.0)
    monkeypatch.setattr(type(tiny), "context_length", 1)
    untouched.require_room(PASSAGE)  # no LM reads it
    asked.require_room(Passage(TEXT, ()))  # without questions it is not read either


def spec_of(**changes: object) -> TrainingSpec:
    usual: dict = {
        "samples": 9, "extra_words": None, "epochs": 5, "first_phase": 0.4, "held_out": 0.1, "shots": 1,
        "questions_per_shot": 1,
        "answer_tokens": 8, "max_new_tokens": 2, "distance": "cosine", "passages_per_step": 2, "batch_tokens": 99,
        "evaluate_every": 1, "judge_by": None, "patience": 3,
    }  # fmt: skip
    return TrainingSpec(**{**usual, **changes})


def weights_of(*names: str) -> LossWeights:
    return LossWeights(**{name: float(name in names) for name in ALL})


def test_the_plan_alternates_and_then_has_answers():
    passages = [PASSAGE, Passage("Text alone.", ()), OTHER]
    plan = plan_steps(passages, [9, 3, 5], spec_of(), LossWeights(**ALL), 0)
    assert [step.kind for step in plan] == ["reconstruction", "continuation"] * 2 + ["answers"] * 3
    assert [step.epoch for step in plan] == [1, 1, 2, 2, 3, 4, 5]
    assert [step.last_of_epoch for step in plan] == [False, True, False, True, True, True, True]
    assert sorted(plan[0].passages + plan[1].passages) == [0, 1, 2]
    assert all(sorted(step.passages) == [0, 2] for step in plan[4:])  # text without questions is left out


def test_alternation_continues_over_epochs():
    plan = plan_steps([PASSAGE, OTHER], [9, 5], spec_of(epochs=3), weights_of("text", "continuation"), 0)
    assert [step.kind for step in plan] == ["reconstruction", "continuation", "reconstruction"]


def test_every_epoch_and_seed_has_its_own_order():
    many = [Passage(f"Text {n}.", PASSAGE.questions) for n in range(24)]

    def orders(seed: int) -> list[list[tuple[int, ...]]]:
        plan = plan_steps(many, [9] * 24, spec_of(epochs=4, first_phase=0.5), weights_of("text", "answer"), seed)
        return [[step.passages for step in plan if step.epoch == epoch] for epoch in (1, 2, 3, 4)]

    first, second = orders(0), orders(1)
    assert first[0] != first[1] and first[2] != first[3]
    assert all(a != b for a, b in zip(first, second, strict=True))


def test_the_first_phase_may_end_within_an_epoch():
    """Each passage still comes once in that epoch."""
    passages = [PASSAGE, Passage("Only text.", ()), OTHER, PASSAGE]
    spec = spec_of(epochs=2, passages_per_step=1, first_phase=0.25)
    plan = plan_steps(passages, [9, 3, 5, 9], spec, weights_of("text", "answer"), 0)
    first = [step for step in plan if step.epoch == 1]
    assert [step.kind for step in first][:2] == ["reconstruction"] * 2
    assert {step.kind for step in first[2:]} == {"answers"}
    seen = [index for step in first for index in step.passages]
    assert len(set(seen)) == len(seen)  # each passage comes once in an epoch, in either phase
    assert set(range(4)) - set(seen) <= {1}  # passages without questions have no answer step
    assert all(1 not in step.passages for step in plan if step.kind == "answers")
    assert [step.last_of_epoch for step in first] == [False] * (len(first) - 1) + [True]
    assert sorted(index for step in plan if step.epoch == 2 for index in step.passages) == [0, 2, 3]
    assert epochs_before_answers(plan) == 1


def test_a_first_phase_below_one_step_is_empty():
    passages = [PASSAGE, Passage("Only text.", ()), OTHER]
    plan = plan_steps(passages, [9, 3, 5], spec_of(epochs=1, first_phase=1e-9), weights_of("text", "answer"), 0)
    assert [(step.kind, sorted(step.passages)) for step in plan] == [("answers", [0, 2])]


def test_a_first_phase_without_room_for_answers_is_refused():
    passages, wanted = [PASSAGE, OTHER], weights_of("text", "answer")
    with pytest.raises(UserError, match=r"first_phase=0\.9: leaves no step for answers"):
        plan_steps(passages, [9, 5], spec_of(epochs=1, first_phase=0.9), wanted, 0)
    plan = plan_steps(passages, [9, 5], spec_of(epochs=1, first_phase=1.0), wanted, 0)
    assert {step.kind for step in plan} == {"reconstruction"}  # as set


def test_a_phase_without_losses_is_left_out():
    passages = [PASSAGE, OTHER]
    kinds = {
        name: {step.kind for step in plan_steps(passages, [9, 5], spec_of(), weights_of(name), 0)}
        for name in ("embedding", "vocabulary", "text", "continuation", "answer", "distillation")
    }
    first = {"embedding": "reconstruction", "vocabulary": "reconstruction", "text": "reconstruction"}
    assert kinds == {n: {first.get(n, "continuation" if n == "continuation" else "answers")} for n in kinds}
    assert len(plan_steps(passages, [9, 5], spec_of(first_phase=0.0), weights_of("embedding"), 0)) == 5
    assert epochs_before_answers(plan_steps(passages, [9, 5], spec_of(), weights_of("embedding", "answer"), 0)) == 2
    assert epochs_before_answers(plan_steps(passages, [9, 5], spec_of(), weights_of("embedding"), 0)) == 0
    assert epochs_before_answers(plan_steps(passages, [9, 5], spec_of(), weights_of("answer"), 0)) == 0
    with pytest.raises(UserError, match="the data have no questions"):
        plan_steps([Passage("Text.", ())], [3], spec_of(), weights_of("answer"), 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("distance", "l1"), ("judge_by", "em"), ("first_phase", 2.0), ("first_phase", -0.1), ("epochs", 0),
     ("passages_per_step", 0), ("max_new_tokens", 0), ("evaluate_every", 0), ("patience", 0)],
)  # fmt: skip
def test_a_setting_out_of_its_range_is_named(name, value):
    with pytest.raises(UserError, match=f"{name}={value}"):
        spec_of(**{name: value})


@pytest.mark.parametrize("name", ["embedding", "rms"])
@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
def test_a_weight_must_be_finite_and_at_least_0(name, value):
    with pytest.raises(UserError, match=rf"weights\.{name}="):
        LossWeights(**{**ALL, name: value})
