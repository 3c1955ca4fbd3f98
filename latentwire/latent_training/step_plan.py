"""What decides a latent training run, and its steps from the first to the last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latentwire.harness.errors import UserError
from latentwire.latent_training.losses import DISTANCES
from latentwire.latent_training.objective import Weights
from latentwire.latent_training.passages import Passage, order_of


@dataclass
class TrainingSpec:
    """What decides a trained encoder besides model, data, encoder, transform, weights and optimizer."""

    samples: int
    extra_words: int | None
    epochs: int
    first_phase: float
    held_out: float
    shots: int
    questions_per_shot: int
    answer_tokens: int
    max_new_tokens: int
    distance: str
    passages_per_step: int
    batch_tokens: int
    evaluate_every: int
    judge_by: str | None
    patience: int

    def __post_init__(self) -> None:
        for name in ("epochs", "passages_per_step", "max_new_tokens", "evaluate_every", "patience"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
        if not 0 <= self.first_phase <= 1:
            raise UserError(f"first_phase={self.first_phase}: is a share of the epochs, between 0 and 1")
        if self.judge_by not in (None, "f1", "cosine"):
            raise UserError(f"judge_by={self.judge_by}: unknown; use f1, cosine or null")
        if self.distance not in DISTANCES:
            raise UserError(f"distance={self.distance}: unknown; use one of {', '.join(DISTANCES)}")


@dataclass(frozen=True)
class TrainingStep:
    """One optimizer step of the plan."""

    epoch: int  # from 1
    kind: str
    passages: tuple[int, ...]  # indices into the passages to train on
    last_of_epoch: bool


def plan_steps(
    passages: Sequence[Passage], lengths: Sequence[int], spec: TrainingSpec, weights: Weights, seed: int
) -> list[TrainingStep]:
    """Return the steps: in the first phase reconstruction and continuation in turn, then answers.

    An epoch in which the first phase ends takes each passage once: what has not come by then is asked about.

    A phase whose losses are all off is left out, and the other one takes all epochs.

    Args:
        passages: To train on.
        lengths: Tokens of each.
        spec: Epochs and the size of a step.
        weights: Which losses are on.
        seed: Of the order.

    Raises:
        UserError: Answers are wanted, and no passage has questions, or the first phase leaves no step for them.
    """
    kinds = weights.first_kinds()
    first = spec.epochs if not weights.asks() else spec.first_phase * spec.epochs if kinds else 0.0
    questioned = [index for index, passage in enumerate(passages) if passage.questions]
    if weights.asks() and not questioned:
        raise UserError("weights.answer: the data have no questions; give question answering data, or weight 0")
    plan: list[TrainingStep] = []
    for epoch in range(spec.epochs):
        share = min(1.0, max(0.0, first - epoch))  # of this epoch's steps, before answers begin
        drawn = list(order_of(list(lengths), spec.passages_per_step, seed, epoch)) if share else []
        begin = drawn[: round(share * len(drawn))]
        steps = [(kinds[(len(plan) + n) % len(kinds)], tuple(own)) for n, own in enumerate(begin)]
        if share < 1:
            seen = {index for own in begin for index in own}
            left = [index for index in questioned if index not in seen]
            for places in order_of([lengths[index] for index in left], spec.passages_per_step, seed, epoch):
                steps.append(("answers", tuple(left[place] for place in places)))
        plan += [TrainingStep(epoch + 1, kind, own, n == len(steps)) for n, (kind, own) in enumerate(steps, 1)]
    if weights.asks() and spec.first_phase < 1 and all(step.kind != "answers" for step in plan):
        raise UserError(
            f"first_phase={spec.first_phase}: leaves no step for answers; lower it, or give it 1 to want none"
        )
    return plan


def epochs_before_answers(plan: Sequence[TrainingStep]) -> int:
    """Return the last epoch of the first phase; 0 where no phase of answers follows it."""
    if not plan or plan[-1].kind != "answers":
        return 0
    return max((step.epoch for step in plan if step.kind != "answers"), default=0)
