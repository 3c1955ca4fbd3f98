"""Settings of latent training and the plan of its steps. Main entry: `plan_steps()`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, replace

import torch

from latentwire.harness.errors import UserError
from latentwire.harness.random import generator_for
from latentwire.harness.results import JsonObject
from latentwire.latent_training.losses import DISTANCES, LossWeights
from latentwire.latent_training.passages import Passage, PassageSpec, order_of


@dataclass
class TrainingSpec:
    """Settings that decide the trained encoder, besides model, data, encoder, transform, loss weights and optimizer."""

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
    continuation_share: float = 0.5
    ratios: list[int] | None = None
    mixed_share: float = 0.7
    copied_rate: float = 1.0
    extra_part: str = "all"
    compressed_shots: bool = False
    max_steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "passages_per_step", "max_new_tokens", "evaluate_every", "patience"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
        if not 0 <= self.first_phase <= 1:
            raise UserError(f"first_phase={self.first_phase}: must be a share of the epochs, from 0 to 1")
        if self.judge_by not in (None, "f1", "cosine"):
            raise UserError(f"judge_by={self.judge_by}: unknown; use f1, cosine or null")
        if self.distance not in DISTANCES:
            raise UserError(f"distance={self.distance}: unknown; use one of {', '.join(DISTANCES)}")

        for name in ("continuation_share", "mixed_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)}: must be a share, from 0 to 1")
        if self.ratios is not None and (not self.ratios or min(self.ratios) < 1):
            raise UserError(f"ratios={self.ratios}: must be ratios of 1 or more, such as [8,4,2], or null")
        if not 0 <= self.copied_rate < math.inf:
            raise UserError(f"copied_rate={self.copied_rate}: must be 0 or more")
        if self.compressed_shots and self.shots < 1:
            raise UserError(
                f"compressed_shots=true shots={self.shots}: no shots to compress; raise shots, or use "
                "compressed_shots=false"
            )

        if self.max_steps is not None and self.max_steps < 1:
            raise UserError(f"max_steps={self.max_steps}: must be at least 1, or null for all epochs")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise UserError(f"minutes={self.minutes}: must be above 0, or null for all epochs")
        if self.max_steps is not None and self.minutes is not None:
            raise UserError(f"max_steps={self.max_steps} minutes={self.minutes}: both say when to stop; leave one out")

    def identity(self) -> JsonObject:
        """Return the settings for the identity of a run, without later settings at their defaults."""
        later = {field.name: field.default for field in fields(self) if field.default is not MISSING}
        return {name: value for name, value in vars(self).items() if name not in later or value != later[name]}

    def passages(self) -> PassageSpec:
        """Return the settings of the choice of passages."""
        return PassageSpec(
            self.samples, self.extra_words, self.held_out, self.shots, self.questions_per_shot, self.extra_part
        )


@dataclass(frozen=True)
class TrainingStep:
    """One optimizer step of the plan."""

    epoch: int  # from 1
    kind: str  # reconstruction | continuation | answers
    passages: tuple[int, ...]  # indices into the passages to train on
    last_of_epoch: bool
    ratio: int | None = None  # tokens for each latent in this step; None: the encoder's own


def plan_steps(
    passages: Sequence[Passage],
    lengths: Sequence[int],
    spec: TrainingSpec,
    loss_weights: LossWeights,
    seed: int,
    most: int | None = None,
) -> list[TrainingStep]:
    """Return the steps of all epochs: first reconstruction and continuation in turn, then answers.

    If the first phase ends within an epoch, the remaining passages of that epoch train answers. Each passage comes at
    most once an epoch. A phase whose losses are all off is left out; the other one then takes all epochs.

    Args:
        passages: Training passages.
        lengths: Number of tokens of each passage.
        spec: Number of epochs, share of the first phase and size of a step.
        loss_weights: Weight of each loss.
        seed: Seed of the order.
        most: Largest number of steps; the first phase has its share of them. None: all epochs.

    Raises:
        UserError: An answer loss is on, but no passage has questions, or the first phase leaves no step for answers.
    """
    kinds = loss_weights.first_phase_kinds()
    epochs = float(spec.epochs)
    if most is not None:
        epochs = min(epochs, most / math.ceil(len(passages) / spec.passages_per_step))
    first_phase_epochs = epochs if not loss_weights.trains_answers() else spec.first_phase * epochs if kinds else 0.0
    questioned = [index for index, passage in enumerate(passages) if passage.questions]
    if loss_weights.trains_answers() and not questioned:
        raise UserError("weights.answer: the data have no questions; give question answering data, or weight 0")
    plan: list[TrainingStep] = []
    for epoch in range(spec.epochs):
        share = min(1.0, max(0.0, first_phase_epochs - epoch))  # share of this epoch's steps in the first phase
        drawn = list(order_of(list(lengths), spec.passages_per_step, seed, epoch)) if share else []
        first_phase = drawn[: round(share * len(drawn))]
        steps = [
            (_kind(kinds, len(plan) + n, spec.continuation_share), tuple(own)) for n, own in enumerate(first_phase)
        ]
        if share < 1:
            seen = {index for own in first_phase for index in own}
            left = [index for index in questioned if index not in seen]
            for places in order_of([lengths[index] for index in left], spec.passages_per_step, seed, epoch):
                steps.append(("answers", tuple(left[place] for place in places)))
        plan += [TrainingStep(epoch + 1, kind, own, n == len(steps)) for n, (kind, own) in enumerate(steps, 1)]
    if most is not None and most < len(plan):
        plan = [*plan[: most - 1], replace(plan[most - 1], last_of_epoch=True)]
    if loss_weights.trains_answers() and spec.first_phase < 1 and all(step.kind != "answers" for step in plan):
        raise UserError(
            f"first_phase={spec.first_phase}: leaves no step for answers; lower it, or use 1 to train no answers"
        )
    return _with_ratios(plan, spec, seed)


def _kind(kinds: Sequence[str], number: int, continuation_share: float) -> str:
    """Return the kind of a step of the first phase; continuation gets its share at even distances."""
    if len(kinds) == 1:
        return kinds[0]
    return kinds[int((number + 1) * continuation_share) > int(number * continuation_share)]


def _with_ratios(plan: list[TrainingStep], spec: TrainingSpec, seed: int) -> list[TrainingStep]:
    """Draw a ratio from `ratios` for each of the first steps; the others have the encoder's own."""
    if spec.ratios is None:
        return plan
    mixed = round(spec.mixed_share * len(plan))
    drawn = torch.randint(len(spec.ratios), (mixed,), generator=generator_for(seed, "ratios")).tolist()
    return [replace(step, ratio=spec.ratios[n]) for step, n in zip(plan, drawn, strict=False)] + plan[mixed:]


def epochs_before_answers(plan: Sequence[TrainingStep]) -> int:
    """Return the last epoch of the first phase; 0 if no answers are trained after it."""
    if not plan or plan[-1].kind != "answers":
        return 0
    return max((step.epoch for step in plan if step.kind != "answers"), default=0)
