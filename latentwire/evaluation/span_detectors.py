"""Checks of the spans that source and transform return for a few examples. Main entry: `output_findings()`.

They read embeddings alone, so they cost no pass of the LM. A finding has the form that detectors.py describes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from latentwire.analysis.findings import finding
from latentwire.harness.random import generator_for
from latentwire.records import Finding

AGREES = 1e-4  # relative distance of a position up to which two outputs agree
FLIPPED = 1  # positions that may differ by more: the last bits of a tie between two tokens
VALUES = 16  # distinct values from which outputs show their precision
TIMES = 3  # times that a clamped row holds its largest magnitude
CLAMPED = 0.05  # share of such rows from which it is a clamp
LEFT_OUT = 0.25  # share of the span that a transform may leave unchanged in one piece
WORKED_ON = 0.9  # share of the other positions that it changes, if that piece is left out
CHANGED = 0.03  # relative change of those positions
LEAK = 0.05  # difference of cosines to the true tokens and to other tokens, from which a transform has the true ones
MEMORY = 0.1  # difference of cosines to the given tokens, between evaluated and other texts
SURE = 6.0  # standard errors that a difference must exceed: about 1 in 10^9 by chance
SHIFTS = 8  # random shifts of the true tokens that give the cosine by chance
SKETCH = 16  # numbers of a sketch


@dataclass(frozen=True)
class Stage:
    """What a source or a transform gets and returns for a few examples."""

    what: str  # its name in messages
    befores: Sequence[Tensor]  # (L, D) each
    afters: Sequence[Tensor]  # (L, D) each


def output_findings(stage: Stage, is_token: Callable[[Tensor], bool], vocabulary: Tensor) -> list[Finding]:
    """Return the warnings about the values that a stage returns: half precision, a clamp, a part left out.

    Args:
        stage: Inputs and outputs.
        is_token: Tells whether rows, (N, D), are embeddings of tokens bit for bit.
        vocabulary: Embeddings of all tokens, (V, D).
    """
    found = [*_half_precision(stage, is_token), *_saturated(stage, vocabulary), *_part_of_span(stage)]
    return [finding(kind, "warning", f"{stage.what} {message}") for kind, message in found]


def _half_precision(stage: Stage, is_token: Callable[[Tensor], bool]) -> list[tuple[str, str]]:
    """Find outputs that float16 or bfloat16 holds exactly although it does not hold the inputs."""
    before, after = torch.cat(list(stage.befores)), torch.cat(list(stage.afters))
    if before.shape != after.shape or len(after[:8].unique()) < VALUES:
        return []
    for dtype in (torch.float16, torch.bfloat16):
        if _holds(dtype, after) and not _holds(dtype, before) and not is_token(after):
            name = str(dtype).removeprefix("torch.")
            return [("half_precision", f"computes in {name}: every value is exact in it, and the inputs' are not")]
    return []


def _holds(dtype: torch.dtype, x: Tensor) -> bool:
    """Return whether a dtype holds all values exactly."""
    return bool((x.to(dtype).to(x.dtype) == x).all())


def _saturated(stage: Stage, vocabulary: Tensor) -> list[tuple[str, str]]:
    """Find rows whose values end at one magnitude, unless inputs or tokens do so too."""
    share = _clamped(torch.cat(list(stage.afters)))
    if not share or _clamped(torch.cat(list(stage.befores))) or _clamped(vocabulary[:4096]):
        return []
    return [
        ("saturated", f"is clamped: in {share:.0%} of the positions, several values end at exactly the same magnitude")
    ]


def _clamped(x: Tensor) -> float:
    """Return the share of rows that hold their largest magnitude several times, counting equal rows once: (N, D)."""
    magnitudes = x.abs()
    largest = magnitudes.amax(dim=-1, keepdim=True)
    held = ((magnitudes == largest) & (largest > 0)).sum(dim=-1) >= TIMES  # (N,)
    share = len(x[held].unique(dim=0)) / max(1, len(x)) if bool(held.any()) else 0.0
    return share if share >= CLAMPED else 0.0


def _part_of_span(stage: Stage) -> list[tuple[str, str]]:
    """Find a contiguous part that a stage returns bit for bit while it changes almost all the rest."""
    shares = []
    for before, after in zip(stage.befores, stage.afters, strict=True):
        if before.shape != after.shape or len(before) < 4:
            return []
        same = (before == after).all(dim=-1)  # (L,)
        start, end = _longest_run(same.tolist())
        rest = torch.ones_like(same)
        rest[start:end] = False
        if end - start < LEFT_OUT * len(same) or not bool(rest.any()):
            return []
        change = (after - before)[rest].norm() / before[rest].norm().clamp_min(1e-30)
        if float((~same[rest]).float().mean()) < WORKED_ON or float(change) < CHANGED:
            return []
        shares.append((end - start) / len(same))
    if not shares:
        return []
    return [("part_of_span", f"changes a part of the span: {min(shares):.0%} of it or more stay as they were")]


def _longest_run(values: list[bool]) -> tuple[int, int]:
    """Return the beginning and the end of the longest run of True."""
    best, start = (0, 0), 0
    for place, value in enumerate([*values, False]):
        if not value:
            best = max(best, (start, place), key=lambda run: run[1] - run[0])
            start = place + 1
    return best


def agree(ones: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Return whether two outputs for the same examples agree, up to the rounding of the last bits: (L, D) each."""
    if any(one.shape != other.shape for one, other in zip(ones, others, strict=True)):
        return False
    return sum(_differing(one, other) for one, other in zip(ones, others, strict=True)) <= FLIPPED


def _differing(one: Tensor, other: Tensor) -> int:
    """Return the number of positions that differ by more than AGREES."""
    return int(((one - other).norm(dim=-1) > AGREES * one.norm(dim=-1)).sum())


def drifts(outputs: Sequence[Tensor]) -> bool:
    """Return whether outputs for one input move away from the first, as with a state; noise goes back and forth.

    Args:
        outputs: Outputs of successive calls, (L, D) each.
    """
    steps = [float((after - before).norm()) for before, after in itertools.pairwise(outputs)]
    return float((outputs[-1] - outputs[0]).norm()) > 2 * sum(steps) / len(steps)


def leaked_tokens(outputs: Sequence[Tensor], true: Sequence[Tensor], given: Sequence[Tensor]) -> list[Finding]:
    """Return a warning if outputs for other tokens are nearer to the example's true tokens than chance allows.

    Chance is the cosine to true tokens of other positions. Positions whose given token is the true one are left out.

    Args:
        outputs: What the transform returns for the given tokens, (L, D) each.
        true: Embeddings of the example's own tokens, (S, D) each.
        given: Embeddings of the tokens that the source got, (S, D) each.
    """
    generator = generator_for(0, "shifts of the true tokens")
    differences = []
    for output, own, other in zip(outputs, true, given, strict=True):
        length = min(len(output), len(own))
        if length < 4:
            continue
        counted = (own[:length] != other[:length]).any(dim=-1)
        near = cosine_similarity(output[:length], own[:length], dim=-1)
        shifts = torch.randint(1, length, (SHIFTS,), generator=generator).tolist()
        rolled = [cosine_similarity(output[:length], own[:length].roll(shift, dims=0), dim=-1) for shift in shifts]
        differences.append((near - torch.stack(rolled).mean(dim=0))[counted])
    difference, error = _mean_and_error(differences)
    if difference < LEAK or difference < SURE * error:
        return []
    message = (
        "the transform has the true tokens: with another passage as input, its outputs still point to them (cosine "
        f"{difference:.2f} above chance)"
    )
    return [finding("leaks_tokens", "warning", message)]


def known_texts(evaluated: Sequence[tuple[Tensor, Tensor]], others: Sequence[tuple[Tensor, Tensor]]) -> list[Finding]:
    """Return a warning if a transform recovers the evaluated texts, but not texts that it cannot know.

    Args:
        evaluated: What it returns for evaluated examples, and the tokens that it was given: (L, D) and (S, D) each.
        others: The same for texts outside the evaluation.
    """
    (near, error), (near_others, error_others) = (
        _mean_and_error([cosine_similarity(out, given, dim=-1) for out, given in pairs if len(out) == len(given)])
        for pairs in (evaluated, others)
    )
    difference = near - near_others
    if difference < MEMORY or difference < SURE * (error**2 + error_others**2) ** 0.5:
        return []
    message = (
        f"the transform knows the evaluated passages: it recovers their tokens (mean cosine {near:.2f}), but not the "
        f"tokens of other texts ({near_others:.2f})"
    )
    return [finding("leaks_tokens", "warning", message)]


def _mean_and_error(parts: Sequence[Tensor]) -> tuple[float, float]:
    """Return the mean of all values and its standard error; 0 and 0 without enough values."""
    values = torch.cat(list(parts)) if parts else torch.zeros(0)
    if len(values) < 2:
        return 0.0, 0.0
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


def sketch_of(outputs: Sequence[Tensor]) -> list[float]:
    """Return SKETCH random projections of a few outputs, with six digits, to compare results without embeddings.

    Args:
        outputs: Repaired embeddings, (L, D) each.
    """
    total = torch.zeros(SKETCH)
    for index, output in enumerate(outputs):
        rows = torch.randn(len(output), SKETCH, generator=generator_for(index, "sketch of positions"))
        columns = torch.randn(output.shape[-1], SKETCH, generator=generator_for(index, "sketch of dimensions"))
        total += ((output.float().cpu() @ columns) * rows).sum(dim=0)
    entries = sum(output.numel() for output in outputs)
    return [float(f"{value:.6g}") for value in (total / max(1, entries) ** 0.5).tolist()]
