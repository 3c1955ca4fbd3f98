"""Likelihood of the right answers under the frozen LM, given a source. Main entry: `Likelihoods.over()`.

F1 counts a word as right or wrong; the likelihood shows how close the LM came, on the same examples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import PartialState
from torch import Tensor

from latentwire.data.examples import Example
from latentwire.data.prompts import PromptWriter
from latentwire.evaluation.detectors import require_finite_values
from latentwire.evaluation.setup import Component, EvaluationSetup
from latentwire.harness.errors import UserError
from latentwire.harness.gather import gather_from_all, in_every_process
from latentwire.harness.progress import Progress
from latentwire.lm.batching import pack_joined
from latentwire.lm.losses import distillation_loss, token_loss
from latentwire.lm.reader import Reader, ReaderBranch, ReaderRow
from latentwire.sources.base import Source

FORMAT = 1  # version of the measurement, part of each likelihood's hash; raise it when the measurement changes


@dataclass(frozen=True)
class Likelihood:
    """Likelihood of one example's first right answer, over at most `max_new_tokens` tokens."""

    nll: float  # mean negative log-likelihood, nats a token
    kl: float  # mean KL(LM given the text || LM given the source), nats a token


def first_answer(setup: EvaluationSetup, example: Example) -> list[int]:
    """Return the token ids of an example's first right answer, at most `max_new_tokens`.

    Raises:
        UserError: The tokenizer has no token for the answer.
    """
    ids = PromptWriter(setup.lm.tokenizer).ids(f" {example.answers[0]}")[: setup.settings.max_new_tokens]
    if not ids:
        raise UserError(
            f"the answer {example.answers[0]!r} of example {example.id} has no tokens, so it has no likelihood; "
            "choose a model whose tokenizer knows the language of the data"
        )
    return ids


class Likelihoods:
    """Scores sources by the likelihood of the right answers. The text, to which sources are compared, is encoded once.

    Args:
        setup: Model, shots and examples.
        state: Processes, among which the passages are divided.

    Raises:
        UserError: The LM has layers that do not support several questions after one passage.
    """

    def __init__(self, setup: EvaluationSetup, state: PartialState) -> None:
        self.setup, self.state = setup, state
        self.writer = PromptWriter(setup.lm.tokenizer)
        self.reader = Reader(setup.lm, setup.decoder.prefix)
        self.context_embeds = setup.lm.embed(torch.tensor(self.writer.ids("Context:")))
        self.branches = [self._branch(index) for index in range(len(setup.prompts))]
        self.groups = self._plan()[state.process_index :: state.num_processes]
        # First example of a group -> final hidden states that predict the answers' tokens, given the text, (N, D)
        self._states_over_text: dict[int, Tensor] = {}

    def over(self, source: Component, title: str) -> list[Likelihood]:
        """Return the likelihood of each example, in order; all processes return the same.

        Args:
            source: Source that replaces the passage alone; the question stays text.
            title: Title of the progress bar.

        Raises:
            UserError: A dial is out of range, a value is not finite, or the LM's context is too short. Every process
                raises the error of any process.
        """
        found: list[tuple[int, Likelihood]] = []
        in_every_process(self.state, lambda: self.over_share(source, title, found))
        return [own for _, own in sorted(gather_from_all(self.state, found), key=lambda pair: pair[0])]

    def _branch(self, index: int) -> ReaderBranch:
        """Return the tokens of an example's question and first right answer."""
        example = self.setup.prompts[index].example
        answer = first_answer(self.setup, example)
        return ReaderBranch((*self.writer.asked(example), *answer), len(answer))

    def _plan(self) -> list[list[int]]:
        """Return groups of examples about the same passage, of at most batch_tokens tokens each."""
        by_passage: dict[str, list[int]] = {}
        for index, prompt in enumerate(self.setup.prompts):
            by_passage.setdefault(prompt.example.context, []).append(index)
        groups: list[list[int]] = []
        for indices in by_passage.values():
            room = self.setup.settings.batch_tokens - int(self.setup.prompts[indices[0]].passage_mask.sum())
            packed = pack_joined([len(self.branches[index].token_ids) for index in indices], room)
            groups += [[indices[i] for i in group] for group in packed]
        return sorted(groups)  # in the order of their first examples

    @torch.no_grad()
    def over_share(self, source: Component, title: str, found: list[tuple[int, Likelihood]]) -> None:
        """Append the index and likelihood of each example in this process's share to `found`."""
        distort = self.setup.build_source(source)
        assert distort.passage_only or type(distort) is Source, "the question stays real tokens"
        reader = self.reader.after(self.setup.with_shots_of(source).decoder.prefix)
        with Progress(f"{title}, likelihood", sum(map(len, self.groups))) as progress:
            for group in self.groups:
                found += zip(group, self._over_group(group, source, distort, reader), strict=True)
                progress.advance(len(group), f"NLL {sum(own.nll for _, own in found) / len(found):.3f}")

    def _over_group(self, group: list[int], source: Component, distort: Source, reader: Reader) -> list[Likelihood]:
        """Return the likelihoods of a group, whose questions share one encoding of the passage.

        `reader` has the shots of the source; the LM that reads the text has them as text.
        """
        lm, prompt = self.setup.lm, self.setup.prompts[group[0]]
        example = prompt.example
        real = lm.embed(prompt.token_ids[prompt.passage_mask]).float()  # (T, D)
        generator = self.setup.settings.generator(source.name, example.id)
        seen = distort(real, generator, example.context)  # (L, D)
        require_finite_values(seen, f"the source {source.label}", example.id)
        row = self._row(seen, group)
        states = reader.states([row])  # (N, D)
        if group[0] not in self._states_over_text:
            text_states = states if type(distort) is Source else self.reader.states([self._row(real, group)])
            self._states_over_text[group[0]] = text_states.cpu()
        lengths = [branch.predicted for branch in row.branches]
        logits = torch.split(self.reader.logits(states), lengths)
        text_logits = torch.split(self.reader.logits(self._states_over_text[group[0]].to(states.device)), lengths)
        targets = torch.split(self.reader.targets([row]), lengths)
        return [
            Likelihood(float(token_loss(own, target)), float(distillation_loss(own, text)))
            for own, text, target in zip(logits, text_logits, targets, strict=True)
        ]

    def _row(self, passage: Tensor, group: list[int]) -> ReaderRow:
        branches = tuple(self.branches[index] for index in group)
        return ReaderRow(torch.cat([self.context_embeds, passage.to(self.context_embeds.dtype)]), branches)
