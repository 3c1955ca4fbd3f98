"""Losses of answers: from the right tokens, and from the LM that reads the text. Main entry: `AnswerLosses`."""

from __future__ import annotations

import torch
from torch import Tensor

from latentwire.data.examples import Example
from latentwire.data.prompts import PromptWriter
from latentwire.harness.errors import UserError
from latentwire.latent_training.losses import LossWeights, sum_of
from latentwire.latent_training.passages import Passage
from latentwire.lm.losses import distillation_loss, hidden_loss, token_loss
from latentwire.lm.models import LanguageModel, layers_of
from latentwire.lm.reader import Reader, ReaderBranch, ReaderRow

HIDDEN_EVERY = 3  # the loss `hidden` compares every third layer
TEACHER_BYTES = 2**30  # upper bound on the memory for cached teacher states


class AnswerLosses:
    """Computes `answer`, `distillation` and `hidden` of questions about passages, each if its weight is above 0.

    Args:
        lm: The frozen LM.
        writer: Writes questions and answers as token ids.
        loss_weights: Weight of each loss.
        answer_tokens: Number of tokens to predict at the start of an answer.

    Raises:
        UserError: `answer_tokens` is below 1.
    """

    def __init__(self, lm: LanguageModel, writer: PromptWriter, loss_weights: LossWeights, answer_tokens: int) -> None:
        if answer_tokens < 1:
            raise UserError(f"answer_tokens={answer_tokens}: must be at least 1")
        self.writer, self.loss_weights, self.answer_tokens = writer, loss_weights, answer_tokens
        self.newline = writer.ids("\nQuestion:")[0]
        self.compared_layers = range(0, len(layers_of(lm)), HIDDEN_EVERY) if loss_weights.hidden else ()
        self.teacher_states: dict[str, tuple[Tensor, Tensor]] = {}  # by passage
        self._teacher_bytes = 0

    def branch(self, example: Example) -> ReaderBranch:
        """Return a question with its answer; with a teacher the question's tokens are predicted too."""
        ids = (*self.writer.asked(example), *self._answer(example))
        return ReaderBranch(ids, len(ids) if self.loss_weights.needs_teacher() else len(self._answer(example)))

    def mask(self, passage: Passage, branches: tuple[ReaderBranch, ...]) -> Tensor:
        """Return which of the N predicted tokens belong to an answer, (N,) bool."""
        pairs = zip(passage.questions, branches, strict=True)
        return torch.cat([torch.arange(b.predicted) >= b.predicted - len(self._answer(e)) for e, b in pairs])

    def losses(
        self,
        passages: list[Passage],
        rows: list[ReaderRow],
        text_rows: list[ReaderRow],
        reader: Reader,
        teacher: Reader,
    ) -> dict[str, Tensor]:
        """Return the sum of each loss over the passages.

        Args:
            passages: Passages with questions.
            rows: Their latents, followed by their questions as `branch` gives them.
            text_rows: The same with the text in place of the latents.
            reader: Reads the rows.
            teacher: Reads the text.
        """
        sizes = [sum(branch.predicted for branch in row.branches) for row in rows]
        final, hidden = reader.layer_states(rows, self.compared_layers)
        logits = torch.split(reader.logits(final), sizes)
        losses: dict[str, Tensor] = {}
        if self.loss_weights.answer:
            targets = torch.split(reader.targets(rows), sizes)
            masks = [self.mask(passage, row.branches) for passage, row in zip(passages, rows, strict=True)]
            losses["answer"] = sum_of(token_loss(a[m], b[m]) for a, b, m in zip(logits, targets, masks, strict=True))
        if self.loss_weights.needs_teacher():
            known = [self._states_over_text(p, row, teacher) for p, row in zip(passages, text_rows, strict=True)]
            if self.loss_weights.distillation:
                losses["distillation"] = sum_of(
                    distillation_loss(a, teacher.logits(b)) for a, (b, _) in zip(logits, known, strict=True)
                )
            if self.loss_weights.hidden:
                losses["hidden"] = sum_of(
                    hidden_loss(a, b) for a, (_, b) in zip(hidden.split(sizes, dim=1), known, strict=True)
                )
        return losses

    def _answer(self, example: Example) -> list[int]:
        """Return the answer's first `answer_tokens` tokens; the newline that ends an answer counts as one."""
        return [*self.writer.ids(f" {example.answers[0]}"), self.newline][: self.answer_tokens]

    @torch.no_grad()
    def _states_over_text(self, passage: Passage, row: ReaderRow, teacher: Reader) -> tuple[Tensor, Tensor]:
        """Return the LM's states with the text as context, computed passage by passage and cached.

        Returns:
            The final states, (N, D), and the outputs of the compared layers, (layers, N, D).
        """
        states = self.teacher_states.get(passage.text)
        if states is None:
            states = teacher.layer_states([row], self.compared_layers)
            if self._teacher_bytes < TEACHER_BYTES:
                self.teacher_states[passage.text] = states
                self._teacher_bytes += sum(own.nbytes for own in states)
        return states
