"""How likely a right answer is to the frozen LM over a source, and how far that is from the LM over the text.

F1 knows a word or misses it; likelihood says how near the LM came, on the same examples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import PartialState
from torch import Tensor

from latentwire.data.prompts import PromptWriter
from latentwire.evaluation.detectors import require_finite_values
from latentwire.evaluation.setup import Component, EvaluationSetup
from latentwire.harness.gather import gather_from_all, in_every_process
from latentwire.harness.progress import Progress
from latentwire.harness.random import generator_for
from latentwire.lm.losses import distillation_loss, token_loss
from latentwire.lm.reader import Reader, ReaderBranch, ReaderRow
from latentwire.sources.base import Source
from latentwire.sources.registry import build_source

FORMAT = 1  # goes into the hash of every likelihood; raise it whenever what is measured here changes


@dataclass(frozen=True)
class Likelihood:
    """Of the tokens of one example's first right answer, `max_new_tokens` of them at most."""

    nll: float  # mean negative log-likelihood of a token, nats
    kl: float  # mean KL(over the text || over the source) where those tokens are to be predicted, nats


class Likelihoods:
    """Scores sources by the likelihood of the right answers; the text, which all are held against, is read once.

    Args:
        bench: Model, shots and examples.
        state: The processes, which share the passages.

    Raises:
        UserError: The LM has layers over which branches cannot be kept apart.
    """

    def __init__(self, bench: EvaluationSetup, state: PartialState) -> None:
        self.bench, self.state = bench, state
        self.writer = PromptWriter(bench.lm.tokenizer)
        self.reader = Reader(bench.lm, bench.decoder.prefix)
        self.lead = bench.lm.embed(torch.tensor(self.writer.ids("Context:")))
        self.branches = [self._branch(index) for index in range(len(bench.prompts))]
        self.groups = self._plan()[state.process_index :: state.num_processes]
        self._over_text: dict[int, Tensor] = {}  # first of a group -> final states before its answers' tokens, (N, D)

    def over(self, source: Component, title: str) -> list[Likelihood]:
        """Return the likelihood of each example, in order; the same in every process.

        Args:
            source: What stands for the passage; one that stands for the question as well has no place here.
            title: For the progress shown.

        Raises:
            UserError: A dial out of range, values that are not finite, or no room in the LM's context; in every
                process, whichever met it.
        """
        found: list[tuple[int, Likelihood]] = []
        in_every_process(self.state, lambda: self.over_share(source, title, found))
        return [own for _, own in sorted(gather_from_all(self.state, found), key=lambda pair: pair[0])]

    def _branch(self, index: int) -> ReaderBranch:
        """Return the question of an example with its first right answer."""
        example = self.bench.prompts[index].example
        answer = self.writer.ids(f" {example.answers[0]}")[: self.bench.settings.max_new_tokens]
        return ReaderBranch((*self.writer.asked(example), *answer), len(answer))

    def _plan(self) -> list[list[int]]:
        """Return which examples are read in one row: those about one passage, as long as batch_tokens has room."""
        groups: list[list[int]] = []
        rooms: dict[str, tuple[list[int], int]] = {}  # passage -> its last group, and the room left in that
        for index, (prompt, branch) in enumerate(zip(self.bench.prompts, self.branches, strict=True)):
            passage, needed = prompt.example.context, len(branch.token_ids)
            group, room = rooms.get(passage, ([], 0))
            if needed > room:
                group, room = [], self.bench.settings.batch_tokens - int(prompt.passage_mask.sum())
                groups.append(group)
            group.append(index)
            rooms[passage] = group, room - needed
        return groups

    @torch.no_grad()
    def over_share(self, source: Component, title: str, found: list[tuple[int, Likelihood]]) -> None:
        """Append the likelihoods of this process's share of the examples, each with the example's index."""
        seed = self.bench.settings.seed
        distort = build_source(source.name, source.dials, self.bench.vocabulary, generator_for(seed, source.name))
        assert distort.passage_only or type(distort) is Source, "the question stays real tokens"
        with Progress(f"{title}, likelihood", sum(map(len, self.groups))) as progress:
            for group in self.groups:
                found += zip(group, self._over_group(group, source, distort), strict=True)
                progress.advance(len(group), f"NLL {sum(own.nll for _, own in found) / len(found):.3f}")

    def _over_group(self, group: list[int], source: Component, distort: Source) -> list[Likelihood]:
        """Read a passage once for all the questions of a group."""
        lm, prompt = self.bench.lm, self.bench.prompts[group[0]]
        example = prompt.example
        real = lm.embed(prompt.token_ids[prompt.passage_mask]).float()  # (T, D)
        drawn = generator_for(self.bench.settings.seed, source.name, example.id)
        seen = distort(real, drawn, example.context)  # (L, D)
        require_finite_values(seen, f"the source {source.name} {source.dials or ''}".rstrip(), example.id)
        row = self._row(seen, group)
        states = self.reader.states([row])  # (N, D)
        if group[0] not in self._over_text:
            text = states if type(distort) is Source else self.reader.states([self._row(real, group)])
            self._over_text[group[0]] = text.cpu()
        lengths = [branch.predicted for branch in row.branches]
        logits = self.reader.logits(states).split(lengths)
        theirs = self.reader.logits(self._over_text[group[0]].to(states.device)).split(lengths)
        targets = self.reader.targets([row]).split(lengths)
        return [
            Likelihood(float(token_loss(own, wanted)), float(distillation_loss(own, text)))
            for own, text, wanted in zip(logits, theirs, targets, strict=True)
        ]

    def _row(self, passage: Tensor, group: list[int]) -> ReaderRow:
        branches = tuple(self.branches[index] for index in group)
        return ReaderRow(torch.cat([self.lead, passage.to(self.lead.dtype)]), branches)
