"""Checks of source and transform on the first examples, next to the evaluation. Main entry: `SpanChecks`.

The examples are evaluated in one order and checked in another, with rebuilt parts, and with the tokens of other texts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from latentwire.analysis.findings import finding
from latentwire.data.prompts import FewShotPrompt
from latentwire.evaluation import span_detectors
from latentwire.evaluation.inputs import RepairedInputs, RepairedSpan
from latentwire.evaluation.setup import given_others
from latentwire.evaluation.span_detectors import Stage
from latentwire.records import Finding

Outputs = Callable[[Sequence[RepairedSpan]], list[Tensor]]

CHECKED = 4  # examples that are checked
LOOKED_UP = 32  # rows that are compared with their nearest tokens
CALLS = 8  # calls with one input that tell a state from noise
# Kinds of the findings about spans, which an extended result keeps: the first examples are not evaluated again.
SPAN_FINDINGS = (
    "same_output",
    "dtype_changed",
    "unseeded",
    "state",
    "leaks_tokens",
    "half_precision",
    "saturated",
    "part_of_span",
    "source_changes_nothing",
)


class SpanChecks:
    """Collects the spans of the first examples while they are evaluated, and checks them afterwards.

    Attributes:
        spans: The spans by index of the example.

    Args:
        inputs: Source and transform of the configuration.
    """

    def __init__(self, inputs: RepairedInputs) -> None:
        self.inputs = inputs
        self.prompts = inputs.setup.prompts[:CHECKED]
        self.spans: dict[int, RepairedSpan] = {}

    def observe(self, index: int, span: RepairedSpan) -> None:
        """Keep the span of one of the first examples.

        Args:
            index: Index of the example among the prompts.
            span: Its span in the evaluation.
        """
        if index < CHECKED:
            self.spans.setdefault(index, span)

    def complete(self) -> None:
        """Compute the spans of the first examples that another process evaluated."""
        for index, prompt in enumerate(self.prompts):
            if index not in self.spans:
                self.spans[index] = self.inputs.repair_span(prompt)

    def sketch(self) -> list[float]:
        """Return random projections of the first repaired embeddings."""
        return span_detectors.sketch_of([self.spans[index].repaired for index in range(len(self.prompts))])

    def findings(self) -> list[Finding]:
        """Return the findings about source and transform; calls both again for the first examples."""
        inputs, vocabulary = self.inputs, self.inputs.setup.vocabulary
        spans = [self.spans[index] for index in range(len(self.prompts))]
        source = Stage("the source", [span.real for span in spans], _seen(spans))
        transform = Stage("the transform", _seen(spans), _repaired(spans))
        found: list[Finding] = []
        if not inputs.distort.passage_only:
            found += source_changes_nothing(inputs, source)
            found += span_detectors.output_findings(source, self._are_tokens, vocabulary.embeddings)
        found += span_detectors.output_findings(transform, self._are_tokens, vocabulary.embeddings)
        found += self._recheck(spans)
        return found + self._leaks(spans)

    @torch.no_grad()
    def _are_tokens(self, rows: Tensor) -> bool:
        """Return whether the first rows, (N, D), are embeddings of tokens bit for bit."""
        vocabulary, rows = self.inputs.setup.vocabulary, rows[:LOOKED_UP].float()
        nearest = vocabulary.nearest(rows, 1).flatten()
        return torch.equal(vocabulary.embeddings[nearest.to(vocabulary.embeddings.device)].to(rows), rows)

    def _recheck(self, spans: Sequence[RepairedSpan]) -> list[Finding]:
        """Return a warning if source or transform give other outputs in the reverse order, when built again."""
        again = self._reversed(self.inputs.rebuilt())
        if not span_detectors.agree(_seen(spans), _seen(again)):
            return [self._explain("the source", _seen, spans)]
        if not span_detectors.agree(_repaired(spans), _repaired(again)):
            return [self._explain("the transform", _repaired, spans)]
        return []

    def _explain(self, what: str, outputs: Outputs, spans: Sequence[RepairedSpan]) -> Finding:
        """Return why the outputs of a second pass differ: randomness that is not passed in, or a state."""
        first, second = outputs(self._reversed(self.inputs)), outputs(self._reversed(self.inputs))
        if span_detectors.agree(outputs(spans), first):
            how = "draws random numbers that do not come from its generator when it is built"
            return finding("unseeded", "warning", f"{what} {how}: built again, it gives other outputs")
        # All but the first call of a pass have the same example before them in both passes.
        same_before = len(first) > 1 and span_detectors.agree(first[:-1], second[:-1])
        if same_before or span_detectors.drifts(
            outputs([self.inputs.repair_span(self.prompts[0]) for _ in range(CALLS)])
        ):
            how = "carries something from one example to the next: outputs depend on the order of the examples"
            return finding("state", "warning", f"{what} {how}")
        how = "it draws random numbers that do not come from its generator, or counts its calls"
        return finding("unseeded", "warning", f"{what} gives other outputs for the same inputs: {how}")

    def _reversed(self, inputs: RepairedInputs) -> list[RepairedSpan]:
        """Return the spans in the order of the examples, computed from the last one to the first."""
        return [inputs.repair_span(prompt) for prompt in reversed(self.prompts)][::-1]

    def _leaks(self, spans: Sequence[RepairedSpan]) -> list[Finding]:
        """Return warnings if the transform has the true tokens without its input."""
        prompts = [self._with_other_tokens(prompt, place) for place, prompt in enumerate(self.prompts)]
        if any(prompt is None for prompt in prompts):
            return []
        others = [self.inputs.repair_span(prompt) for prompt in prompts if prompt is not None]
        found = span_detectors.leaked_tokens(
            [span.repaired for span in others],
            [span.own[span.mask].float() for span in spans],
            [span.real for span in others],
        )
        if found or not self.inputs.setup.fitting:
            return found
        return span_detectors.known_texts(
            [(span.repaired, span.real) for span in spans], [(span.repaired, span.real) for span in others]
        )

    def _with_other_tokens(self, prompt: FewShotPrompt, place: int) -> FewShotPrompt | None:
        """Return the prompt with the tokens of texts outside the evaluation, else of other examples; None without."""
        setup = self.inputs.setup
        own = prompt.example.context
        texts = [ids.tolist() for ids in itertools.islice(setup.fitting, place, None, CHECKED)] or [
            other.token_ids[other.source_mask].tolist() for other in setup.prompts if other.example.context != own
        ]
        return given_others(prompt, prompt.source_mask, texts) if texts else None


def _seen(spans: Sequence[RepairedSpan]) -> list[Tensor]:
    return [span.seen for span in spans]


def _repaired(spans: Sequence[RepairedSpan]) -> list[Tensor]:
    return [span.repaired for span in spans]


def source_changes_nothing(inputs: RepairedInputs, stage: Stage) -> list[Finding]:
    """Return a warning if a source returns its input, unless it is `text` or at the clean level of its ladder.

    Args:
        inputs: Source and transform of the configuration.
        stage: Inputs and outputs of the source.
    """
    source, name = inputs.distort, inputs.source.name
    clean = any(
        ladder.clean is not None and inputs.source.dials.get(ladder.dial) == ladder.clean for ladder in source.ladders
    )
    same = all(torch.equal(before, after) for before, after in zip(stage.befores, stage.afters, strict=True))
    if name == "text" or clean or not same:
        return []
    message = f"the source {inputs.source.label} returns every embedding unchanged: its dials have no effect"
    return [finding("source_changes_nothing", "warning", message)]
