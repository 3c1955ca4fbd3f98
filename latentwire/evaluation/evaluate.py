"""Evaluation of one configuration: examples, source, transform, generation, metrics. Main entry: `evaluate()`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from latentwire.analysis.findings import Finding
from latentwire.data.fingerprints import fingerprint
from latentwire.data.prompts import FewShotPrompt
from latentwire.encoders.checkpoint import about_latents
from latentwire.encoders.cost import COMPARED as PASSAGES_COMPARED
from latentwire.encoders.cost import LatentCost, account
from latentwire.evaluation import detectors
from latentwire.evaluation.metrics import exact_match, f1_score
from latentwire.evaluation.setup import Component, EvaluationSetup, block_ends
from latentwire.harness.errors import UserError
from latentwire.harness.gather import gather_from_all, in_every_process
from latentwire.harness.progress import Progress, log
from latentwire.harness.random import generator_for
from latentwire.lm.decoding import Generated
from latentwire.sources.base import Source
from latentwire.sources.registry import SOURCES
from latentwire.stats.intervals import bootstrap_interval, wilson_interval
from latentwire.transforms.base import PAIRS, Transform
from latentwire.transforms.registry import build_transform

PUBLIC = ("id", "question", "references", "prediction", "f1", "em", "cut_off", "change")  # fields of a stored row
BEGINNING = 4  # first positions of a span that `detectors.same_output` compares
COMPARED = 32  # spans that it compares


def evaluate(
    setup: EvaluationSetup,
    source: Component,
    transform: Component,
    state: PartialState,
    title: str,
    num_examples: int | None = None,
    known: Sequence[dict[str, Any]] = (),
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Evaluate the examples with one source and one transform.

    With n processes, each takes every n-th batch, and all return the same values.

    Args:
        setup: Model, prompts and settings.
        source: Source that replaces the embeddings of the passage.
        transform: Transform that repairs them.
        state: Device and processes.
        title: Title of the progress bar.
        num_examples: Number of examples to evaluate, which must be the end of a block; None: all.
        known: Finished rows of the first examples, up to the end of a block; they are not evaluated again.

    Returns:
        The scores with intervals, findings and timings of this run, and one row for each example. A row has
        id, question, references, prediction, f1, em, cut_off and change.

    Raises:
        UserError: A dial is out of range, a value is not finite, or a prompt lacks its source span. Also: a transform
            cannot be fitted on the embeddings. Every process raises the error of any process.
    """
    started = time.perf_counter()
    end = len(setup.prompts) if num_examples is None else min(num_examples, len(setup.prompts))
    if end not in block_ends(len(setup.prompts), setup.block_size):
        raise UserError(
            f"num_examples={num_examples}: must be the end of a block of examples "
            f"({setup.block_size} times 1, 2, 4, ...)"
        )
    before = setup.decoder.seconds, setup.decoder.positions
    share = _Share()
    wanted = range(len(known), end)
    in_every_process(state, lambda: _evaluate_share(setup, source, transform, state, title, wanted, share))
    rows = sorted(gather_from_all(state, share.rows), key=lambda row: row["index"])
    decoder = setup.decoder
    costs = gather_from_all(state, [(decoder.seconds - before[0], decoder.positions - before[1])])
    timing = {
        "decoded": sum(not row["reused"] for row in rows),
        "reused": sum(row["reused"] for row in rows),
        "decode_sec": round(sum(seconds for seconds, _ in costs), 6),
        "positions": sum(positions for _, positions in costs),
        "shots_sec": round(setup.shots_sec, 6),
        "shots_positions": decoder.prefix.length,
    }
    public = [*known, *(_public(row) for row in rows)]
    findings = [*setup.warnings, *gather_from_all(state, share.findings)]
    findings += detectors.changes_nothing(transform.name, [row["change"] for row in public])
    findings += detectors.odd_predictions([row["prediction"] for row in public], [row["references"] for row in public])
    seconds = round(time.perf_counter() - started, 3)
    scores = {
        **_summarize(setup, public, setup.settings.seed),
        "warnings": _distinct(findings),
        "fit": share.fit,
        "latents": _account_for_latents(setup, source, public),
        "time_sec": seconds,
        "timing": timing,
    }
    return scores, public


@dataclass
class _Share:
    """Results of one process."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    fit: dict[str, Any] | None = None  # as `_fit` returns it
    beginnings: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # span beginnings before and after the repair


def _distinct(findings: list[Finding]) -> list[Finding]:
    return [finding for index, finding in enumerate(findings) if finding not in findings[:index]]


def _evaluate_share(
    setup: EvaluationSetup,
    source: Component,
    transform: Component,
    state: PartialState,
    title: str,
    wanted: range,
    share: _Share,
) -> None:
    """Evaluate the examples of this process, batch by batch."""
    distort = setup.build_source(source)
    repair = build_transform(transform.name, transform.dials, setup.vocabulary)
    repair.to(setup.lm.device)
    share.fit = _fit(setup, distort, repair, source, transform)
    batches = [batch for batch in setup.batches if all(index in wanted for index in batch)]
    batches = batches[state.process_index :: state.num_processes]
    with Progress(title, sum(len(batch) for batch in batches)) as progress:
        for batch in batches:
            inputs, changes = [], []
            for index in batch:
                _check_span(setup, setup.prompts[index])
                embeds, change = _embed(setup, setup.prompts[index], distort, repair, source, transform, share)
                inputs.append(embeds)
                changes.append(change)
            outputs, reused = setup.decoder.decode(inputs)
            for index, output, change in zip(batch, outputs, changes, strict=True):
                share.rows.append(_row(index, setup.prompts[index], output, change, reused))
            progress.advance(len(batch), f"F1 {sum(row['f1'] for row in share.rows) / len(share.rows):.3f}")
    if len(share.beginnings) > 1:
        befores, afters = zip(*share.beginnings, strict=True)
        share.findings += detectors.same_output(befores, afters)


@torch.no_grad()
def _fit(
    setup: EvaluationSetup, distort: Source, repair: Transform, source: Component, transform: Component
) -> dict[str, Any] | None:
    """Fit a transform to the source's embeddings of passages outside the evaluation.

    Returns:
        Number and kind of the embeddings and the transform's diagnosis; None for a transform that is not fitted.
    """
    if not repair.fits:
        return None
    if not setup.fitting:
        raise UserError(
            f"embed_transform={transform.name}: is fitted on passages outside the evaluation, and the data have none; "
            "lower samples, or give another file for the shots (shots_path=FILE)"
        )
    seed = setup.settings.seed
    ids = setup.fitting_passages if distort.passage_only else setup.fitting
    texts = [str(setup.lm.tokenizer.decode(span.tolist())).strip() for span in ids]
    spans = [setup.lm.embed(span.to(setup.lm.device)).float() for span in ids]
    seen = [
        distort(span, generator_for(seed, source.name, "fitting", index), text)
        for index, (span, text) in enumerate(zip(spans, texts, strict=True))
    ]
    if not sum(map(len, seen)):
        raise UserError(
            f"embed_transform={transform.name}: the source {source.name} gives no embeddings to fit it on; choose "
            "another source"
        )
    truth = torch.cat(spans) if repair.fits == PAIRS else None
    x = torch.cat(seen)
    if truth is not None and len(truth) != len(x):
        raise UserError(
            f"embed_transform={transform.name}: is fitted to pairs of embedding and token, but the source "
            f"{source.name} has {len(x)} positions for {len(truth)} tokens; choose a transform that needs no pairs"
        )
    repair.fit(x, truth, generator_for(seed, transform.name, "fitting"))
    return {
        "embeddings": len(x),
        "sees": repair.fits,
        "supervised": repair.fits == PAIRS,
        "diagnosis": repair.diagnosis,
    }


def _check_span(setup: EvaluationSetup, prompt: FewShotPrompt) -> None:
    texts = [prompt.example.question]
    if prompt.passage:
        texts.append(prompt.example.context)
    decoded = str(setup.lm.tokenizer.decode(prompt.token_ids[prompt.source_mask].tolist()))
    detectors.require_span(int(prompt.source_mask.sum()), decoded, texts, prompt.example.id)


@torch.no_grad()
def _embed(
    setup: EvaluationSetup,
    prompt: FewShotPrompt,
    distort: Source,
    repair: Transform,
    source: Component,
    transform: Component,
    share: _Share,
) -> tuple[Tensor, float]:
    """Return the embeddings of a prompt with its span distorted and repaired, and the change of the repair.

    Returns:
        The embeddings, (T, D), and |repaired - source| / |source| over the span, which is 0 if both are bit-identical.
    """
    identifier, seed = prompt.example.id, setup.settings.seed
    embeds = setup.lm.embed(prompt.token_ids).clone()
    span = (prompt.passage_mask if distort.passage_only else prompt.source_mask).to(embeds.device)
    real = embeds[span].float()  # source and transform compute in float32; the result is rounded once, for the LM
    seen = distort(real, generator_for(seed, source.name, identifier), prompt.example.context)
    repaired = repair(seen, generator_for(seed, transform.name, identifier)) if len(seen) else seen
    for what, before, after in (
        (f"the source {source.label}", real, seen),
        (f"the transform {transform.label}", seen, repaired),
    ):
        detectors.require_finite_values(after, what, identifier)
        found = detectors.dtype_changed(what, before.dtype, after.dtype)
        share.findings += [finding for finding in found if finding not in share.findings]
    if len(seen) >= BEGINNING and len(share.beginnings) < COMPARED:
        share.beginnings.append((seen[:BEGINNING].cpu(), repaired[:BEGINNING].cpu()))
    embeds = put_passage(embeds, span, repaired.to(embeds.dtype))
    room = setup.lm.context_length - setup.decoder.prefix.length - setup.decoder.max_new_tokens
    if len(embeds) > room:
        raise UserError(
            f"the source {source.label} makes {len(repaired)} positions from the passage of example {identifier}, more "
            "than the model's context has room for; lower shots, or use fewer positions"
        )
    change = (repaired - seen).norm() / seen.norm().clamp_min(1e-30)
    return embeds, float(change)


def put_passage(embeds: Tensor, span: Tensor, replacement: Tensor) -> Tensor:
    """Return the embeddings of a prompt with a span replaced.

    Args:
        embeds: Embeddings of the prompt, (T, D); changed in place if the span keeps its length.
        span: Mask of the span, (T,); it must be contiguous if its length changes.
        replacement: New embeddings of the span, (L, D).
    """
    places = span.nonzero().flatten()
    if len(places) == len(replacement):
        embeds[span] = replacement
        return embeds
    start, end = int(places[0]), int(places[-1]) + 1
    assert end - start == len(places), "a span in several pieces cannot change its length"
    return torch.cat([embeds[:start], replacement, embeds[end:]])


@torch.no_grad()
def _account_for_latents(
    setup: EvaluationSetup, source: Component, rows: list[dict[str, Any]]
) -> dict[str, Any] | None:
    """Return what latents cost, how much they differ, and how many passages the encoder was trained on.

    Returns:
        The accounting, or None for a source that also replaces the question.
    """
    if not SOURCES[source.name].passage_only:
        return None
    seed = setup.settings.seed
    distort = setup.build_source(source)
    prompts = setup.prompts[: len(rows)]
    contexts = [prompt.example.context for prompt in prompts]
    tokens = [int(prompt.passage_mask.sum()) for prompt in prompts]
    costs = [
        LatentCost(text, count, distort.positions(count), distort.size(count))
        for text, count in zip(contexts, tokens, strict=True)
    ]
    latents = [
        distort(
            setup.lm.embed(prompt.token_ids[prompt.passage_mask]).float(),
            generator_for(seed, source.name, prompt.example.id),
            text,
        )
        for text, prompt in list(dict(zip(contexts, prompts, strict=True)).items())[:PASSAGES_COMPARED]
    ]
    found = account(costs, latents, [row["prediction"] for row in rows], [row["references"][0] for row in rows])
    if "checkpoint" in source.dials:
        known = set(about_latents(source.dials["checkpoint"])["trained_on"])
        found["seen_in_training"] = sum(fingerprint(text) in known for text in contexts)
        if found["seen_in_training"]:
            found["warnings"].append(
                f"{found['seen_in_training']} of {len(rows)} examples ask about passages that trained or stopped the "
                "encoder: their scores are not evidence"
            )
    for warning in found["warnings"]:
        log(f"warning: {warning}")
    return found


def _row(index: int, prompt: FewShotPrompt, output: Generated, change: float, reused: bool) -> dict[str, Any]:
    example = prompt.example
    return {
        "index": index,
        "id": example.id,
        "question": example.question,
        "references": list(example.answers),
        "prediction": output.text,
        "f1": f1_score(output.text, example.answers),
        "em": exact_match(output.text, example.answers),
        "cut_off": output.cut_off,
        "change": change,
        "reused": reused,
    }


def _public(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in PUBLIC}


def _summarize(setup: EvaluationSetup, rows: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Return the means over the examples with 95% intervals, and counts."""
    count = len(rows)

    def total(score: Callable[[dict[str, Any]], float]) -> float:
        return float(sum(score(row) for row in rows))

    exact, empty = total(lambda row: row["em"]), total(lambda row: not row["prediction"])
    return {
        "f1": total(lambda row: row["f1"]) / count,
        "f1_interval": bootstrap_interval([row["f1"] for row in rows], seed),
        "em": exact / count,
        "em_interval": wilson_interval(exact, count),
        "empty_rate": empty / count,
        "empty_rate_interval": wilson_interval(empty, count),
        "num_samples": count,
        "too_long": len(setup.too_long),
        "too_long_ids": setup.too_long,
        "left_out": setup.left_out,
        "cut_off": int(total(lambda row: row["cut_off"])),
        "relative_change": total(lambda row: row["change"]) / count,
        "identity": all(row["change"] == 0 for row in rows),
    }
