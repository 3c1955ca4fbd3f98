"""How likely a right answer is to the frozen LM over a source, and how far that is from the LM over the text.

F1 knows a word or misses it; likelihood says how near the LM came, on the same examples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import PartialState
from torch import Tensor

from latentwire.bench import Bench, Choice
from latentwire.detectors import require_finite
from latentwire.harness.device import gather_from_all, generator_for, in_every_process
from latentwire.harness.progress import Progress
from latentwire.latent_losses import distillation_loss, token_loss
from latentwire.prompts import PromptWriter
from latentwire.reader import Branch, Reader, Row
from latentwire.sources import Text, build_source


@dataclass(frozen=True)
class Likelihood:
    """Of one example's first right answer, its first `max_new_tokens` tokens, the newline that ends it among them."""

    nll: float  # mean negative log-likelihood of a token, nats
    kl: float  # mean KL(over the text || over the source) where those tokens are to be predicted, nats


class Likelihoods:
    """Scores sources by the likelihood of the right answers; the text, which all are held against, is read once.

    Args:
        bench: Model, shots and examples.
        state: The processes, which share the passages.
    """

    def __init__(self, bench: Bench, state: PartialState) -> None:
        self.bench, self.state = bench, state
        self.writer = PromptWriter(bench.lm.tokenizer)
        self.reader = Reader(bench.lm, bench.decoder.prefix)
        self.lead = bench.lm.embed(torch.tensor(self.writer.ids("Context:")))
        by_passage: dict[str, list[int]] = {}
        for index, prompt in enumerate(bench.prompts):
            by_passage.setdefault(prompt.example.context, []).append(index)
        self.passages = list(by_passage.values())[state.process_index :: state.num_processes]
        self._over_text: dict[str, Tensor] = {}  # passage -> final states where an answer is predicted, (N, D)

    def over(self, source: Choice, title: str) -> list[Likelihood]:
        """Return the likelihood of each example, in order; the same in every process.

        Args:
            source: What stands for the passage; one that stands for the question as well has no place here.
            title: For the progress shown.

        Raises:
            UserError: A dial out of range, values that are not finite, or no room in the LM's context; in every
                process, whichever met it.
        """
        found: list[tuple[int, Likelihood]] = []
        in_every_process(self.state, lambda: self._over_share(source, title, found))
        return [own for _, own in sorted(gather_from_all(self.state, found), key=lambda pair: pair[0])]

    @torch.no_grad()
    def _over_share(self, source: Choice, title: str, found: list[tuple[int, Likelihood]]) -> None:
        seed = self.bench.settings.seed
        distort = build_source(source.name, source.dials, self.bench.vocabulary, generator_for(seed, source.name))
        assert distort.passage_only or type(distort) is Text, "the question stays real tokens"
        with Progress(f"{title}, likelihood", sum(map(len, self.passages))) as progress:
            for indices in self.passages:
                found += zip(indices, self._over_passage(indices, source, distort), strict=True)
                progress.advance(len(indices), f"NLL {sum(own.nll for _, own in found) / len(found):.3f}")

    def _over_passage(self, indices: list[int], source: Choice, distort: Text) -> list[Likelihood]:
        """Read a passage once for all its questions."""
        bench = self.bench
        prompt = bench.prompts[indices[0]]
        example = prompt.example
        real = bench.lm.embed(prompt.token_ids[prompt.passage_mask]).float()  # (T, D)
        seen = distort(real, generator_for(bench.settings.seed, source.name, example.id), example.context)  # (L, D)
        require_finite(seen, f"the source {source.name} {source.dials or ''}".rstrip(), example.id)
        branches = []
        for index in indices:
            answer = self.writer.answered(bench.prompts[index].example, bench.settings.max_new_tokens)
            branches.append(Branch((*self.writer.asked(bench.prompts[index].example), *answer), len(answer)))
        row = self._row(seen, branches)
        states = self.reader.states([row])  # (N, D)
        if example.context not in self._over_text:
            text = states if type(distort) is Text else self.reader.states([self._row(real, branches)])
            self._over_text[example.context] = text.cpu()
        lengths = [branch.predicted for branch in branches]
        logits = self.reader.logits(states).split(lengths)
        theirs = self.reader.logits(self._over_text[example.context].to(states.device)).split(lengths)
        targets = self.reader.targets([row]).split(lengths)
        return [
            Likelihood(float(token_loss(own, wanted)), float(distillation_loss(own, text)))
            for own, text, wanted in zip(logits, theirs, targets, strict=True)
        ]

    def _row(self, passage: Tensor, branches: list[Branch]) -> Row:
        return Row(torch.cat([self.lead, passage.to(self.lead.dtype)]), tuple(branches))
