"""Faults of sources, transforms and prompts, which a single configuration shows."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from latentwire.data.prompts import FewShotPrompt
from latentwire.evaluation import inputs
from latentwire.evaluation.setup import Component, Settings
from latentwire.lm.vocabulary import Vocabulary
from latentwire.records import Finding
from latentwire.sources.distortions import Noisy, Scaled, Shifted
from latentwire.transforms.scaling import RMSMatching
from latentwire.transforms.tokens import AnchorOffset
from tests.faults.planting import BASELINE, NOISY, RMS, Bench, Fault, in_prompts, in_source, in_transform, replaced

sound_repair, sound_distort, sound_init = RMSMatching.repair, Noisy.distort, RMSMatching.__init__
sound_put = inputs.put_passage


# --- writing where others read ----------------------------------------------------------------------------------


def drifting_vocabulary(bench: Bench) -> list[Finding]:
    """The transform changes the token embeddings that all configurations share."""
    before = bench.setup.vocabulary.embeddings.clone()

    def repair(self: RMSMatching, x: Tensor, generator: torch.Generator) -> Tensor:
        self.vocabulary.embeddings.mul_(1.001)
        return sound_repair(self, x, generator)

    try:
        return in_transform(repair)(bench)
    finally:
        bench.setup.vocabulary.embeddings.copy_(before)


# --- states and random numbers -----------------------------------------------------------------------------------


def output_of_the_example_before(bench: Bench) -> list[Finding]:
    """The transform returns the beginning of what it got the time before."""
    before: list[Tensor] = []

    def repair(self: RMSMatching, x: Tensor, generator: torch.Generator) -> Tensor:
        given = before[0][torch.arange(len(x)) % len(before[0])] if before else x
        before[:] = [x]
        return given

    return in_transform(repair)(bench)


def shifted_by_the_example_before(bench: Bench) -> list[Finding]:
    """The transform adds a little of the mean of the example before."""
    before = [torch.zeros(bench.setup.vocabulary.width)]

    def repair(self: RMSMatching, x: Tensor, generator: torch.Generator) -> Tensor:
        found = x + 0.1 * before[0]
        before[0] = x.mean(dim=0)
        return found

    return in_transform(repair)(bench)


def running_mean(bench: Bench) -> list[Finding]:
    """The transform centres by a mean over all its calls."""
    mean = [torch.zeros(bench.setup.vocabulary.width)]

    def repair(self: RMSMatching, x: Tensor, generator: torch.Generator) -> Tensor:
        mean[0] = 0.9 * mean[0] + 0.1 * x.mean(dim=0)
        return x - mean[0]

    return in_transform(repair)(bench)


def state_in_a_source(bench: Bench) -> list[Finding]:
    """The source adds noise that grows with every example."""
    calls = itertools.count(1)

    def distort(self: Noisy, x: Tensor, generator: torch.Generator) -> Tensor:
        return x + 0.01 * next(calls) * (sound_distort(self, x, generator) - x)

    return in_source(distort)(bench)


def unseeded_when_built(bench: Bench) -> list[Finding]:
    """The transform draws a vector without a generator when it is built."""

    def init(self: RMSMatching, vocabulary: Vocabulary, *, target_scale: float) -> None:
        sound_init(self, vocabulary, target_scale=target_scale)
        self.target_rms *= float(1 + torch.rand(()))

    with replaced(RMSMatching, "__init__", init):
        return bench.configuration(NOISY, RMS)


def shuffled_generators(bench: Bench) -> list[Finding]:
    """The generators that source and transform get come from the number of calls, not from the example."""
    calls = itertools.count()
    with replaced(Settings, "generator", lambda self, *names: torch.Generator().manual_seed(next(calls))):
        return bench.configuration(NOISY, RMS)


def same_draws_for_all(bench: Bench) -> list[Finding]:
    """A source draws its noise from a seed of its own, and ignores the input."""

    def distort(self: Noisy, x: Tensor, generator: torch.Generator) -> Tensor:
        own: Tensor = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) * x.norm() / x.numel() ** 0.5
        return own

    return in_source(distort)(bench)


# --- the span ----------------------------------------------------------------------------------------------------


def span_off_by(by: int) -> Callable[[Bench], list[Finding]]:
    """Plant a placing of the repaired embeddings that is some positions off."""

    def find(bench: Bench) -> list[Finding]:
        def put(embeds: Tensor, span: Tensor, replacement: Tensor) -> Tensor:
            return sound_put(embeds, span.roll(by), replacement)

        with replaced(inputs, "put_passage", put):
            return bench.configuration(NOISY, RMS)

    return find


def neighbours_overwritten(bench: Bench) -> list[Finding]:
    """Placing the repaired embeddings also changes the token before them."""

    def put(embeds: Tensor, span: Tensor, replacement: Tensor) -> Tensor:
        found = sound_put(embeds, span, replacement)
        found[0] = 0
        return found

    with replaced(inputs, "put_passage", put):
        return bench.configuration(NOISY, RMS)


def shifted_masks(prompt: FewShotPrompt) -> FewShotPrompt:
    """Return a prompt whose masks are three positions late."""
    return replace(prompt, source_mask=prompt.source_mask.roll(3), passage_mask=prompt.passage_mask.roll(3))


def masks_without(share: float) -> Callable[[FewShotPrompt], FewShotPrompt]:
    """Return a change that unmarks the end of the passage."""

    def change(prompt: FewShotPrompt) -> FewShotPrompt:
        places = prompt.passage_mask.nonzero().flatten()
        kept = prompt.passage_mask.clone()
        kept[places[int((1 - share) * len(places)) :]] = False
        return replace(prompt, source_mask=prompt.source_mask & (kept | ~prompt.passage_mask), passage_mask=kept)

    return change


def mask_with_the_template(prompt: FewShotPrompt) -> FewShotPrompt:
    """Return a prompt whose passage mask begins one token early, in the template."""
    earlier = prompt.passage_mask | prompt.passage_mask.roll(-1)
    return replace(prompt, source_mask=prompt.source_mask | earlier, passage_mask=earlier)


# --- values -------------------------------------------------------------------------------------------------------


def half_of_the_span(self: RMSMatching, x: Tensor, generator: torch.Generator) -> Tensor:
    """Repair the first half of the positions."""
    half = len(x) // 2
    return torch.cat([sound_repair(self, x[:half], generator) * 0.5, x[half:]])


def end_of_the_span(self: RMSMatching, x: Tensor, generator: torch.Generator) -> Tensor:
    """Repair all but the first 30% of the positions."""
    first = int(0.3 * len(x))
    return torch.cat([x[:first], sound_repair(self, x[first:], generator) * 0.5])


def clamped(self: RMSMatching, x: Tensor, generator: torch.Generator) -> Tensor:
    """Clamp the result at 1.5 standard deviations."""
    found = sound_repair(self, x, generator)
    return found.clamp(-1.5 * self.target_rms, 1.5 * self.target_rms)


def clamped_before(self: RMSMatching, x: Tensor, generator: torch.Generator) -> Tensor:
    """Clamp the input at 1.5 standard deviations, and scale afterwards."""
    limit = 1.5 * float(x.std())
    return sound_repair(self, x.clamp(-limit, limit), generator)


def one_infinite(self: RMSMatching, x: Tensor, generator: torch.Generator) -> Tensor:
    """Make one value infinite."""
    x[0, 0] = float("inf")
    return x


def no_finding_of_nan(self: Noisy, x: Tensor, generator: torch.Generator) -> Tensor:
    """Make one value of the source NaN."""
    found = sound_distort(self, x, generator)
    found[-1, 0] = float("nan")
    return found


def source_without_effect(bench: Bench) -> list[Finding]:
    """The scaled source forgets its factor."""
    with replaced(Scaled, "distort", lambda self, x, generator: x):
        return bench.configuration(Component("scaled", {"factor": 117.0}), RMS)


def shift_of_a_wrong_place(bench: Bench) -> list[Finding]:
    """The shifted source adds to a copy, and returns its input."""

    def distort(self: Shifted, x: Tensor, generator: torch.Generator) -> Tensor:
        x.clone().add_(self.shift)
        return x

    with replaced(Shifted, "distort", distort):
        return bench.configuration(Component("shifted", {"offset": 2.0}), BASELINE)


def other_dtype(bench: Bench) -> list[Finding]:
    """A transform returns float64."""
    with replaced(AnchorOffset, "forward", lambda self, x, generator: x.double()):
        return bench.configuration(NOISY, Component("anchor_offset", {"eps": 0.1}))


FAULTS: list[Fault] = [
    Fault("vocabulary drifts", ("error",), drifting_vocabulary, "token embeddings have changed"),
    Fault("output of the example before", ("state",), output_of_the_example_before, "the transform"),
    Fault("shifted by the example before", ("state",), shifted_by_the_example_before, "the transform"),
    Fault("running mean", ("state",), running_mean, "the transform"),
    Fault("state in a source", ("state",), state_in_a_source, "the source"),
    Fault(
        "unseeded noise in a transform",
        ("unseeded",),
        in_transform(lambda self, x, generator: x + 0.01 * torch.randn_like(x)),
        "the transform",
    ),
    Fault(
        "unseeded noise in a source",
        ("unseeded",),
        in_source(lambda self, x, generator: x + 0.1 * torch.randn_like(x)),
        "the source",
    ),
    Fault("unseeded when built", ("unseeded",), unseeded_when_built, "the transform"),
    Fault("generators by call", ("unseeded",), shuffled_generators, "the source"),
    Fault(
        "float16 inside",
        ("half_precision",),
        in_transform(lambda self, x, generator: sound_repair(self, x, generator).half().float()),
        "float16",
    ),
    Fault(
        "bfloat16 inside",
        ("half_precision",),
        in_transform(lambda self, x, generator: sound_repair(self, x, generator).bfloat16().float()),
        "bfloat16",
    ),
    Fault("clamp of the outputs", ("saturated",), in_transform(clamped)),
    Fault("clamp inside", ("saturated",), in_transform(clamped_before)),
    Fault("half of the span repaired", ("part_of_span",), in_transform(half_of_the_span)),
    Fault("beginning of the span left out", ("part_of_span",), in_transform(end_of_the_span)),
    Fault("span off by one", ("error",), span_off_by(1), "shifted by +1"),
    Fault("span two early", ("error",), span_off_by(-2), "shifted by -2"),
    Fault(
        "neighbour of the span changed", ("error",), neighbours_overwritten, "hold other embeddings, from position 0"
    ),
    Fault("mask off by three", ("error",), in_prompts(shifted_masks), "shifted by +3"),
    Fault("mask missing 40%", ("error",), in_prompts(masks_without(0.4)), "tokens are missing"),
    Fault("mask missing 5%", ("error",), in_prompts(masks_without(0.05)), "tokens are missing"),
    Fault("mask with a token of the template", ("error",), in_prompts(mask_with_the_template), "is not its text"),
    Fault("source changes nothing", ("source_changes_nothing",), source_without_effect),
    Fault("source returns the wrong tensor", ("source_changes_nothing",), shift_of_a_wrong_place),
    Fault("infinite value", ("error",), in_transform(one_infinite), "the transform rms_matching"),
    Fault("NaN in a source", ("error",), in_source(no_finding_of_nan), "the source noisy"),
    Fault(
        "constant output",
        ("same_output",),
        in_transform(lambda self, x, generator: torch.full_like(x, 0.01)),
        "the transform",
    ),
    Fault("source ignores its input", ("same_output",), same_draws_for_all, "the source"),
    Fault("dtype changed", ("dtype_changed",), other_dtype),
]
